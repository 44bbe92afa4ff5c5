import json

import numpy as np
import pytest
import torch
from models import random_images, random_pairs, random_vit, shape
from oracles import edges
from telling_pairs import slow_faithfulness, telling_pairs, telling_vit

import circuitvit as cv
from circuitvit.edge_graph import edge_names_of
from circuitvit.measure import across_ablations, faithfulness
from circuitvit.measure.bootstrap import Estimate, Spread, resampled_means


def test_faithfulness_is_one_for_the_full_and_zero_for_the_empty_circuit():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 6)
    full = cv.Circuit(vit.config, edge_names_of(vit.config))
    for metric in ("kl", "logit_difference", "probability"):
        assert faithfulness(vit, full, pairs, metric=metric) == pytest.approx(1)
        assert faithfulness(vit, full.keeping(()), pairs, metric=metric) == pytest.approx(0)
    half = cv.eap(vit, pairs).top(30)
    logits = {c: cv.run_circuit(vit, c, pairs) for c in (full, half, full.keeping(()))}
    rows = torch.arange(6)
    means = [
        float((x[rows, pairs.labels] - x[rows, pairs.corrupt_labels]).mean())
        for x in logits.values()
    ]
    expected = (means[1] - means[2]) / (means[0] - means[2])
    assert faithfulness(vit, half, pairs, metric="logit_difference") == pytest.approx(expected)


def test_faithfulness_without_a_difference_is_refused():
    vit = random_vit(shape())
    images = random_images(vit, 3)
    with pytest.warns(UserWarning, match="corrupt images equal their clean ones"):
        same = cv.Pairs(clean=images, corrupt=images)
    circuit = cv.Circuit(vit.config, ["embed->logits"])
    with pytest.raises(cv.CircuitError, match="faithfulness is undefined"):
        faithfulness(vit, circuit, same)


@pytest.mark.parametrize("name", ["ragged", "mean", "constants, quick"])
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_faithfulness_equals_hooked_runs_under_every_ablation_and_metric(name, qkv):
    vit = random_vit(shape(name), seed=3)
    pairs, reference = random_pairs(vit, 7), random_images(vit, 5, seed=9)
    everything = edges(vit.config, qkv)
    drawn = np.random.default_rng(0).random(len(everything)) < 0.7
    kept = [edge for edge, keep in zip(everything, drawn, strict=True) if keep]
    circuit = cv.Circuit(vit.config, kept, qkv=qkv)
    for metric in ("kl", "logit_difference", "cross_entropy", "probability"):
        for ablation in ("patch", "zero", "mean"):
            found = faithfulness(
                vit, circuit, pairs, metric=metric, ablation=ablation, reference=reference
            )
            slow = slow_faithfulness(vit, kept, pairs, metric, ablation, reference, qkv)
            assert found == pytest.approx(slow, rel=1e-10, abs=1e-10)


def test_faithfulness_takes_callables_and_accuracy_and_any_number_of_images(monkeypatch):
    from circuitvit.measure import examination

    vit = telling_vit()
    pairs = telling_pairs(vit, 11)
    circuit = cv.Circuit(vit.config, edge_names_of(vit.config)[::2])
    whole = faithfulness(vit, circuit, pairs, metric="cross_entropy")
    hits = faithfulness(vit, circuit, pairs, metric="accuracy")

    def surprise(logits, chunk):
        return -logits.log_softmax(-1).gather(-1, chunk.labels[:, None])[:, 0]

    for images in (64, 4, 1):  # the last batch is short at 4
        monkeypatch.setattr(examination, "images_at_once", lambda vit, images=images: images)
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
        faithfulness(vit, circuit, random_pairs(vit, 3))
    with pytest.raises(cv.CircuitError, match="metric accuracy are NaN or infinite"):
        faithfulness(vit, circuit, random_pairs(vit, 3), metric="accuracy")
