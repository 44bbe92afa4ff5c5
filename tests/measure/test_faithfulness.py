import json

import numpy as np
import pytest
import torch
from oracles import edges
from random_models import random_images, random_pairs, random_vit, shape
from telling_pairs import slow_faithfulness, slow_metric, telling_pairs, telling_vit

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of
from circuitvit.intervene.task import PatchingTask
from circuitvit.measure import across_ablations, faithfulness
from circuitvit.measure.bootstrap import Estimate, KnownEstimate, Spread, resampled_means
from circuitvit.measure.circuits.losses import Outcome, outcome_of


def test_faithfulness_is_one_for_the_full_and_zero_for_the_empty_circuit():
    vit = telling_vit()
    pairs = telling_pairs(vit, 6)
    full = cv.Circuit(vit.config, edge_names_of(vit.config))
    for metric in ("kl", "logit_difference", "probability"):
        assert faithfulness(vit, full, pairs, metric=metric) == pytest.approx(1)
        none = faithfulness(vit, full.keeping(()), pairs, metric=metric)
        assert (none, str(none)) == (0, "0.0")
    half = cv.eap(vit, pairs).top(30)
    logits = {c: cv.run_circuit(vit, c, pairs) for c in (full, half, full.keeping(()))}
    rows = torch.arange(6)
    means = [
        float((x[rows, pairs.labels] - x[rows, pairs.corrupt_labels]).mean())
        for x in logits.values()
    ]
    expected = (means[1] - means[2]) / (means[0] - means[2])
    assert faithfulness(vit, half, pairs, metric="logit_difference") == pytest.approx(expected)


def test_every_measure_follows_discovery_and_gives_the_same_faithfulness():
    vit = telling_vit()
    known, pairs, reference = telling_pairs(vit, 6, seed=1), telling_pairs(vit, 9), None
    for ablation, metric in (("patch", "kl"), ("zero", "cross_entropy"), ("mean", "kl")):
        reference = random_images(vit, 5, seed=9) if ablation == "mean" else None
        question = {"ablation": ablation, "reference": reference}
        circuit = cv.acdc(vit, known, tau=0.05, metric=metric, **question)
        own = faithfulness(vit, circuit, pairs, reference=reference)
        options = {"reference": reference, "bootstrap": 5}
        curve = cv.faithfulness_curve(vit, [circuit], pairs, controls=0, **options)
        side = across_ablations(
            vit, circuit, pairs, ablations=[ablation], **options
        )  # the circuit's own metric; several ablations are what it is for
        results = [
            curve,
            cv.completeness(vit, circuit, pairs, knockouts=1, **options),
            cv.minimality(vit, circuit, pairs, **options),
        ]
        figures = [
            curve["circuits"].points[0].faithfulness,
            results[1].faithfulness,
            results[2].faithfulness,
            side["circuit"].faithfulness[ablation],
        ]
        assert [figure.value for figure in figures] == pytest.approx([own] * 4, abs=1e-12)
        slow = slow_faithfulness(vit, circuit.edges, pairs, metric, ablation, reference)
        assert own == pytest.approx(slow, abs=1e-10)
        for result in results:
            assert (result.conditions.metric, result.conditions.ablation) == (metric, ablation)
        assert side.conditions.metric == metric
        other = faithfulness(
            vit, circuit, pairs, metric="probability", ablation="zero", reference=reference
        )
        slow = slow_faithfulness(vit, circuit.edges, pairs, "probability", "zero")
        assert other == pytest.approx(slow, abs=1e-10)


def test_circuits_made_by_hand_are_judged_by_logit_difference_under_patch():
    vit = telling_vit()
    pairs = telling_pairs(vit, 7)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    slow = slow_faithfulness(vit, circuit.edges, pairs, "logit_difference", "patch")
    assert faithfulness(vit, circuit, pairs) == pytest.approx(slow, abs=1e-10)
    curve = cv.faithfulness_curve(vit, [circuit], pairs, controls=0, bootstrap=5)
    assert (curve.conditions.metric, curve.conditions.ablation) == ("logit_difference", "patch")
    found = cv.acdc(vit, telling_pairs(vit, 5, seed=1), tau=0.05, ablation="zero")
    both = cv.faithfulness_curve(vit, [circuit, found], pairs, controls=0, bootstrap=5)
    assert (both.conditions.metric, both.conditions.ablation) == ("kl", "zero")


def test_a_question_of_discovery_that_is_not_known_is_asked_for(as_users_call):
    vit = telling_vit()
    pairs = telling_pairs(vit, 5)

    def found(**provenance):
        return cv.Circuit(
            vit.config, edge_names_of(vit.config)[::2], provenance=cv.Provenance(**provenance)
        )

    several = {"a": found(metric="kl"), "b": found(metric="probability")}
    calls = (
        (lambda: faithfulness(vit, found(metric="surprise"), pairs), "callable metric 'surprise'"),
        (
            lambda: faithfulness(vit, found(ablation="mean"), pairs),
            "found under 'mean', which needs",
        ),
        (lambda: across_ablations(vit, several, pairs), "metric of discovery is kl, probability"),
        (
            lambda: cv.faithfulness_curve(
                vit, [found(ablation="zero"), found(ablation="patch")], pairs
            ),
            "ablation of discovery is patch, zero, so it must be said",
        ),
    )
    for call, message in calls:
        with pytest.raises(cv.CircuitError, match=message):
            call()


def contradictory(pairs):
    """A metric that full and empty circuit differ in, by about nothing on average."""

    def metric(logits, chunk):
        first = (chunk.clean[:, None] == pairs.clean[::2][None]).flatten(2).all(2).any(1)
        return logits[:, 0] * first.to(logits.dtype).mul(2).sub(1)

    return metric


def test_faithfulness_without_a_difference_is_refused():
    vit = telling_vit()
    pairs = telling_pairs(vit, 12)
    with pytest.warns(UserWarning, match="corrupt images equal their clean ones"):
        same = cv.Pairs(clean=pairs.clean, corrupt=pairs.clean)
    circuit = cv.Circuit(vit.config, ["embed->logits"])
    for judged, metric in ((same, "kl"), (pairs, contradictory(pairs))):
        for measure in (faithfulness, cv.completeness, cv.minimality):
            with pytest.raises(cv.CircuitError) as refused:
                measure(vit, circuit, judged, metric=metric)
            for told in ("faithfulness is undefined: the metric is ", " 12 images", "Give more "):
                assert told in str(refused.value)


def test_a_difference_is_undefined_where_its_interval_holds_0_or_one_image_makes_it_up():
    ends = np.zeros(30), np.random.default_rng(0).normal(size=30)
    circuits = np.ones((2, 30))
    for shift, one, defined in ((0.1, 0, False), (2, 0, True), (-2, 0, True), (1e-5, 9, False)):
        empty = ends[1] * (1 if one == 0 else 1e-7) + shift
        empty[0] += one
        outcome = Outcome(ends[0], empty, circuits, (1, 2))
        gap = outcome.difference
        assert gap.value == pytest.approx(-empty.mean())
        assert gap.low < gap.value < gap.high
        assert (outcome.why_undefined is None) is defined
        assert np.isnan(outcome.faithfulness()).tolist() == [not defined] * 2
        assert np.isnan(outcome.resampled_faithfulness(resamples=9, seed=0)).all() != defined
        told = "not clearly different from 0" if one == 0 else "less than 1.5 standard errors"
        assert defined or outcome.why_undefined.endswith(f"30 images), which is {told}")
    assert "30 images" in Outcome(ends[0], ends[1], circuits, (1, 2)).why_undefined
    alone = Outcome(np.zeros(1), np.ones(1), np.full((1, 1), 0.25), (3,))
    assert alone.why_undefined is None
    assert alone.faithfulness() == [0.75]


def test_where_faithfulness_is_undefined_tables_figures_and_files_say_so(tmp_path):
    vit = telling_vit()
    pairs = telling_pairs(vit, 12)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])

    metric = contradictory(pairs)
    found = across_ablations(
        vit, {"one": circuit}, pairs, metric=metric, ablations=("patch", "zero"), bootstrap=20
    )
    assert list(found.undefined) == ["patch", "zero"]
    row = found["one"]
    assert row.gap == row.faithfulness["patch"] == Estimate(None, None, None)
    assert found.table()[1][-3:] == ["undefined"] * 3
    assert "Under patch, faithfulness is undefined: the metric is" in found.markdown()
    (trace,) = found.figure().data
    assert list(trace.x) == ["patch: undefined", "zero: undefined"]
    assert list(trace.y) == [None, None]
    assert trace.name == "one, gap undefined"
    loaded = cv.AcrossAblations.load(found.save(tmp_path / "across.json"))
    assert loaded == found
    curve = cv.faithfulness_curve(
        vit, [circuit, circuit.keeping(circuit.edges[::2])], pairs, metric=metric, controls=1,
        bootstrap=5,
    )  # fmt: skip
    assert curve.cpr == curve["random 0"].points[1].faithfulness == Estimate(None, None, None)
    assert curve.random()[0] == curve.random_area("cmd") == Spread(None, None, None)
    assert [row[-3:] for row in curve.table()[1:]] == [["undefined"] * 3] * 4
    assert "undefined: the metric is" in curve.markdown()
    assert "f is undefined" in curve.figure().layout.title.text
    assert cv.Curve.load(curve.save(tmp_path / "curve.json")) == curve
    assert curve["circuits"].points[0].metric != 0


def test_a_gap_is_that_of_the_ablations_under_which_faithfulness_is_defined():
    vit = telling_vit()
    pairs = telling_pairs(vit, 9)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    with pytest.warns(UserWarning, match="corrupt images equal their clean ones"):
        same = cv.Pairs(clean=pairs.clean, corrupt=pairs.clean)
    options = {"metric": "kl", "reference": random_images(vit, 5), "bootstrap": 5}
    found = across_ablations(vit, circuit, same, **options)
    assert list(found.undefined) == ["patch"]
    row = found["circuit"]
    defined = [row.faithfulness[name].value for name in ("zero", "mean")]
    assert row.faithfulness["patch"].value is None
    assert row.gap.value == pytest.approx(abs(defined[0] - defined[1]))
    one = across_ablations(vit, circuit, same, ablations=("patch", "zero"), **options)
    assert one["circuit"].gap.value is None
    alone = across_ablations(vit, circuit, same, ablations=("zero",), **options)
    assert alone["circuit"].gap.value == 0


def test_figures_without_a_value_are_shown_as_undefined():
    nothing = Estimate.of(float("nan"), np.full(3, np.nan))
    assert nothing == Estimate(None, None, None)
    assert str(nothing) == str(Spread.of([0.5, None])) == "undefined"
    assert str(KnownEstimate.of(0.5, np.array([0.5, np.nan]))) == "0.500 (0.500 to 0.500)"


@pytest.mark.parametrize("name", ["ragged", "mean", "constants, quick"])
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_faithfulness_equals_hooked_runs_under_every_ablation_and_metric(name, qkv):
    vit = random_vit(shape(name), seed=3)
    pairs, reference = random_pairs(vit, 7), random_images(vit, 5, seed=9)
    everything = edges(vit.config, qkv)
    drawn = np.random.default_rng(0).random(len(everything)) < 0.7
    kept = [edge for edge, keep in zip(everything, drawn, strict=True) if keep]
    circuit = cv.Circuit(vit.config, kept, qkv=qkv)
    defined = 0
    for metric in ("kl", "logit_difference", "cross_entropy", "probability"):
        for ablation in ("patch", "zero", "mean"):
            question = {"metric": metric, "ablation": ablation, "reference": reference}
            outcome = outcome_of(
                PatchingTask.checked(vit, pairs, **question),
                [circuit],
                count=1,
                what="",
                undefined=True,
            )
            slow = [
                slow_metric(vit, names, pairs, metric, ablation, reference, qkv)
                for names in (everything, (), kept)
            ]
            means = [outcome.full.mean(), outcome.empty.mean(), outcome.circuits.mean()]
            assert means == pytest.approx(slow, rel=1e-10, abs=1e-10)
            if outcome.why_undefined is None:
                defined += 1
                expected = (slow[2] - slow[1]) / (slow[0] - slow[1])
                found = faithfulness(vit, circuit, pairs, **question)
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert defined >= 3


def test_faithfulness_takes_callables_and_accuracy_and_any_number_of_images(monkeypatch):
    from circuitvit.measure.circuits import losses

    vit = telling_vit()
    pairs = telling_pairs(vit, 11)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    whole = faithfulness(vit, circuit, pairs, metric="cross_entropy")
    hits = faithfulness(vit, circuit, pairs, metric="accuracy")

    def surprise(logits, chunk):
        return -logits.log_softmax(-1).gather(-1, chunk.labels[:, None])[:, 0]

    for images in (64, 4, 1):  # the last batch is short at 4
        monkeypatch.setattr(losses, "images_in_chunk", lambda vit, images=images: images)
        assert faithfulness(vit, circuit, pairs, metric=surprise) == pytest.approx(whole)
        assert faithfulness(vit, circuit, pairs, metric="accuracy") == hits


def test_ablations_side_by_side_are_the_faithfulness_under_each_and_their_gap(tmp_path):
    vit = telling_vit()
    pairs, reference = telling_pairs(vit, 9), random_images(vit, 6, seed=4)
    one = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    other = cv.Circuit(vit.config, edge_names_of(vit.config)[5:])
    found = across_ablations(
        vit, {"one": one, "other <b>": other}, pairs, metric="kl", reference=reference, bootstrap=50
    )
    for name, circuit in (("one", one), ("other <b>", other)):
        row = found[name]
        for ablation in ("patch", "zero", "mean"):
            expected = slow_faithfulness(vit, circuit.edges, pairs, "kl", ablation, reference)
            estimate = row.faithfulness[ablation]
            assert estimate.value == pytest.approx(expected, rel=1e-10)
            assert estimate.low <= estimate.high
            assert row.left[ablation] == len(circuit.without_dangling(ablation))
        values = [estimate.value for estimate in row.faithfulness.values()]
        assert row.gap.value == max(values) - min(values)
    assert found.conditions.ablation is None
    assert found.conditions.reference is not None
    body = json.loads(found.save(tmp_path / "across.json").read_text())
    assert body == json.loads(json.dumps(found.as_dict()))
    assert body["circuits"]["one"]["gap"]["value"] == found["one"].gap.value
    assert "| one | " in found.markdown()
    names = [trace.name for trace in found.figure().data]
    assert names[1].startswith("other &lt;b&gt;, gap")
    alone = across_ablations(
        vit, one, pairs, metric="kl", ablations=("patch", "zero"), bootstrap=50
    )
    assert alone["circuit"].faithfulness["zero"] == found["one"].faithfulness["zero"]


def test_a_full_circuit_has_no_gap_between_ablations():
    vit = telling_vit()
    pairs = telling_pairs(vit, 5)
    full = cv.Circuit(vit.config, edge_names_of(vit.config))
    row = across_ablations(vit, full, pairs, reference=random_images(vit, 3), metric="kl")[
        "circuit"
    ]
    assert row.gap == Estimate(0.0, 0.0, 0.0)


def test_a_model_and_pairs_are_left_as_they_were():
    vit = telling_vit().train()
    pairs = telling_pairs(vit, 5)
    weights, data = vit.fingerprint(), pairs.fingerprint()
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    across_ablations(vit, circuit, pairs, reference=pairs.corrupt, metric="kl", bootstrap=5)
    assert vit.training
    assert (vit.fingerprint(), pairs.fingerprint()) == (weights, data)
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_resampled_means_are_those_of_images_drawn_with_replacement():
    values = np.random.default_rng(0).normal(size=(3, 40))
    means = resampled_means(values, resamples=4000, seed=5)
    assert means.shape == (4000, 3)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=1) / np.sqrt(40), rtol=0.1)
    first = np.random.default_rng(5).integers(40, size=40)
    np.testing.assert_allclose(means[0], values[:, first].mean(axis=1))
    assert np.array_equal(means, resampled_means(values, resamples=4000, seed=5))
    assert not np.array_equal(means, resampled_means(values, resamples=4000, seed=6))


def test_estimates_and_spreads_say_what_they_are():
    estimate = Estimate.of(0.5, np.linspace(0, 1, 1001))
    assert (estimate.low, estimate.high) == pytest.approx((0.025, 0.975))
    assert str(estimate) == "0.500 (0.025 to 0.975)"
    assert str(Spread.of([-1e-9, 3.0, 1.0])) == "1.000 (0.000 to 3.000)"


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    vit = random_vit(shape())
    pairs, images = random_pairs(vit, 3), random_images(vit, 3)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    other = cv.Circuit(shape("ragged"), ["embed->logits"])

    def nan(logits, chunk):
        return logits[:, 0] / 0

    calls = (
        (lambda: faithfulness(circuit, vit, pairs), "expected a circuitvit.ViT, got Circuit"),
        (lambda: faithfulness(vit, "a0.h0", pairs), "expected a circuitvit.Circuit, got str"),
        (lambda: faithfulness(vit, other, pairs), "belongs to another model"),
        (lambda: faithfulness(vit, circuit, images), "expected circuitvit.Pairs"),
        (lambda: faithfulness(vit, circuit, pairs, metric=nan), "returned NaN or infinity"),
        (lambda: faithfulness(vit, circuit, pairs, metric=lambda x, p: x.mean()), "one value an"),
        (lambda: faithfulness(vit, circuit, pairs, metric="f1"), "metric is 'f1'"),
        (lambda: faithfulness(vit, circuit, pairs, ablation="mean"), "needs reference images"),
        (lambda: faithfulness(vit, circuit, pairs, ablation="none"), "ablation is 'none'"),
        (lambda: faithfulness(vit, circuit, pairs.to(dtype=torch.float32)), "dtype torch.float32"),
        (lambda: faithfulness(vit, circuit, cv.Pairs(clean=images)), "needs corrupt images"),
        (lambda: across_ablations(vit, circuit, pairs), "needs reference images"),
        (lambda: across_ablations(vit, {}, pairs, reference=images), "expected a Circuit or"),
        (lambda: across_ablations(vit, [circuit], pairs, reference=images), "type list"),
        (lambda: across_ablations(vit, circuit, pairs, ablations=()), "and some of"),
        (lambda: across_ablations(vit, circuit, pairs, ablations=("zero",), bootstrap=0), "≥ 1 res"),
        (lambda: across_ablations(vit, circuit, pairs, ablations=("zero",), seed=-1), "seed ≥ 0"),
    )  # fmt: skip
    for call, message in calls:
        with pytest.raises(cv.CircuitError, match=message):
            call()


def test_overflowing_logits_are_refused():
    vit = random_vit(shape(), dtype=torch.float32)
    with torch.no_grad():
        vit.head.weight.fill_(3e38)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config))
    with pytest.raises(cv.CircuitError, match="metric kl are NaN or infinite on some image"):
        faithfulness(vit, circuit, random_pairs(vit, 3), metric="kl")
    with pytest.raises(cv.CircuitError, match="metric accuracy are NaN or infinite"):
        faithfulness(vit, circuit, random_pairs(vit, 3), metric="accuracy")
