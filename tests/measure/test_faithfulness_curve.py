import json
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from random_models import random_images
from telling_pairs import Ranked, random_scores, slow_faithfulness, telling_pairs, telling_vit

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of
from circuitvit.measure import SHARES, Curve, faithfulness_curve
from circuitvit.measure.bootstrap import Estimate


def area(shares, values):
    """The trapezoid rule, written out."""
    steps = zip(shares, values, shares[1:], values[1:], strict=False)
    return sum((k1 - k0) * (f0 + f1) / 2 for k0, f0, k1, f1 in steps)


@pytest.mark.parametrize("qkv", ["split", "joint"])
@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
def test_every_point_and_area_equals_hooked_runs(qkv, ablation):
    vit = telling_vit()
    pairs, reference = telling_pairs(vit, 12), random_images(vit, 5, seed=9)
    scores = random_scores(vit, qkv=qkv, ablation=ablation)
    shares = (0.05, 0.3, 0.6, 0.9, 1.0)
    curve = faithfulness_curve(
        vit, scores, pairs, reference=reference, shares=shares, controls=1, bootstrap=20
    )
    assert curve.all_edges == len(scores)
    for line, signed in ((curve["signed"], True), (curve["absolute"], False)):
        slow = []
        for share, point in zip(shares, line.points, strict=True):
            circuit = scores.top(int(share * len(scores)), signed=signed)
            slow.append(
                slow_faithfulness(
                    vit, circuit.edges, pairs, "logit_difference", ablation, reference, qkv
                )
            )
            assert (point.share, point.edges) == (share, int(share * len(scores)))
            assert point.left == len(circuit.without_dangling(ablation))
            assert point.share_left == point.left / len(scores)
            assert point.faithfulness.value == pytest.approx(slow[-1], rel=1e-10, abs=1e-10)
        missing, left = [abs(1 - f) for f in slow], [point.share_left for point in line.points]
        assert line.cpr.value == pytest.approx(area(shares, slow), rel=1e-10, abs=1e-10)
        assert line.cmd.value == pytest.approx(area(shares, missing), rel=1e-10)
        assert line.cpr_left.value == pytest.approx(area(left, slow), rel=1e-10, abs=1e-10)
        assert line.cmd_left.value == pytest.approx(area(left, missing), rel=1e-10, abs=1e-10)
    assert curve.cpr == curve["signed"].cpr
    assert curve.cmd == curve["absolute"].cmd


def test_signed_and_absolute_rankings_differ_where_scores_are_negative():
    vit = telling_vit()
    names = edge_names_of(vit.config)
    pairs = telling_pairs(vit, 10)
    values = {name: (-1.0) ** place * (place + 1) for place, name in enumerate(names)}
    mixed = faithfulness_curve(vit, Ranked(vit.config, values), pairs, controls=0, bootstrap=5)
    positive = {name: abs(value) for name, value in values.items()}
    plain = faithfulness_curve(vit, Ranked(vit.config, positive), pairs, controls=0, bootstrap=5)
    assert plain["signed"].points == plain["absolute"].points  # one run of the same circuits
    signed, absolute, again = (
        [point.faithfulness.value for point in line.points]
        for line in (mixed["signed"], mixed["absolute"], plain["absolute"])
    )
    assert absolute == pytest.approx(again, abs=1e-9)
    assert max(abs(a - b) for a, b in zip(signed, absolute, strict=True)) > 1e-3
    edges = [[p.edges for p in line.points] for line in (mixed["absolute"], plain["absolute"])]
    assert edges[0] == edges[1]


def test_a_perfect_circuit_at_every_share_has_cpr_0_999_and_cmd_0():
    vit = telling_vit()
    full = cv.Circuit(vit.config, edge_names_of(vit.config))

    class Perfect(Ranked):
        def top(self, n, *, signed=False):
            return full

    values = dict.fromkeys(full.edges, 1.0)
    curve = faithfulness_curve(vit, Perfect(vit.config, values), telling_pairs(vit, 6), controls=0)
    assert [point.share for point in curve["signed"].points] == list(SHARES)
    for point in curve["signed"].points:
        assert point.faithfulness.value == 1
        assert (point.faithfulness.low, point.faithfulness.high) == pytest.approx((1, 1))
    assert curve.cpr.value == pytest.approx(0.999)
    assert (curve.cpr.low, curve.cpr.high) == pytest.approx((0.999, 0.999))
    assert curve.cmd.value == 0


def test_the_last_point_is_the_whole_model_and_a_circuit_of_no_edges_none_of_it():
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 8)
    curve = faithfulness_curve(vit, scores, pairs, controls=2, bootstrap=10)
    for line in (*curve.lines, *curve.controls):
        assert line.points[0].edges == line.points[0].left == 0
        assert line.points[0].faithfulness.value == 0
        assert line.points[-1].faithfulness.value == 1
        assert line.points[-1].metric == curve.full
        assert line.points[0].metric == curve.empty


def test_scores_of_eap_draw_a_curve_under_the_ablation_they_were_found_with():
    vit = telling_vit()
    scores = cv.eap(vit, telling_pairs(vit, 6, seed=1), ablation="zero")
    pairs, few = telling_pairs(vit, 8), {"controls": 0, "bootstrap": 10}
    curve = faithfulness_curve(vit, scores, pairs, metric="kl", **few)
    assert curve.conditions.ablation == "zero"
    assert curve.conditions.method == "eap"
    assert curve.conditions.held_out is True
    other = faithfulness_curve(vit, scores, pairs, ablation="patch", **few)
    assert other.conditions.metric == "logit_difference"
    assert other.conditions.ablation == "patch"


@pytest.mark.parametrize("family", ["random", "connected"])
def test_random_circuits_are_seeded_have_the_same_size_and_hold_one_another(family):
    from circuitvit.measure.circuits.faithfulness import _random_families

    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 6)
    curve = faithfulness_curve(vit, scores, pairs, controls=3, bootstrap=5, seed=2)
    sizes = [point.edges for point in curve["signed"].points]
    names = [line.name for line in curve.controls]
    assert names == [f"{kind} {draw}" for kind in ("random", "connected") for draw in range(3)]
    controls = [line for line in curve.controls if line.name.startswith(family)]
    assert all([point.edges for point in line.points] == sizes for line in controls)
    circuits = [(share, scores.top(int(share * len(scores)))) for share in SHARES]
    drawn = _random_families(circuits, 3, 2)
    assert list(drawn) == names
    for name, line in zip([f"{family} {draw}" for draw in range(3)], controls, strict=True):
        assert all(one <= more for (_, one), (_, more) in pairwise(drawn[name]))
        left = [len(one.without_dangling("patch")) for _, one in drawn[name]]
        assert left == [point.left for point in line.points]
        assert (left == sizes) is (family == "connected")
    values = [[p.faithfulness.value for p in line.points] for line in controls]
    spread = getattr(curve, family)()
    assert [s.median for s in spread] == np.median(values, axis=0).tolist()
    assert [s.low for s in spread] == np.min(values, axis=0).tolist()
    assert [s.high for s in spread] == np.max(values, axis=0).tolist()
    area = curve.random_area("cpr", connected=family == "connected")
    assert area.low == min(line.cpr.value for line in controls)
    assert curve == faithfulness_curve(vit, scores, pairs, controls=3, bootstrap=5, seed=2)
    other = faithfulness_curve(vit, scores, pairs, controls=3, bootstrap=5, seed=3)
    assert other.controls != curve.controls
    assert [p.edges for p in other["signed"].points] == sizes


def test_intervals_cover_the_value_of_many_images_and_shrink_with_images():
    vit = telling_vit()
    scores, shares = random_scores(vit), (0.5, 0.8)
    many = telling_pairs(vit, 400, seed=3)

    def at(count, seed):
        drawn = np.random.default_rng(seed).choice(400, count, replace=False)
        pairs = many.subset(torch.as_tensor(drawn))
        curve = faithfulness_curve(
            vit, scores, pairs, metric="kl", shares=shares, controls=0, bootstrap=200
        )
        return curve["signed"].points[1].faithfulness

    truth = at(400, 0).value
    few, more = at(25, 1), at(225, 1)
    assert more.high - more.low < 0.6 * (few.high - few.low)
    covered = [one.low <= truth <= one.high for one in (at(60, seed) for seed in range(20))]
    assert sum(covered) >= 15


def test_the_bootstrap_is_the_same_for_a_seed_and_another_for_another():
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 9)

    def points(seed):
        return faithfulness_curve(vit, scores, pairs, controls=0, bootstrap=30, seed=seed).lines

    assert points(0) == points(0)
    assert points(0) != points(1)
    values = [[p.faithfulness.value for p in line.points] for line in points(0)]
    assert values == [[p.faithfulness.value for p in line.points] for line in points(1)]


def test_the_bootstrap_resamples_the_ratio_of_means():
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 7)
    curve = faithfulness_curve(
        vit, scores, pairs, metric="kl", shares=[0.8], controls=0, bootstrap=40, seed=6
    )
    drawn = np.random.default_rng(6)
    slow = [
        slow_faithfulness(
            vit,
            scores.top(int(0.8 * len(scores)), signed=True).edges,
            pairs.subset(torch.as_tensor(drawn.integers(7, size=7))),
            "kl",
            "patch",
        )
        for _ in range(40)
    ]
    estimate = curve["signed"].points[0].faithfulness
    assert (estimate.low, estimate.high) == pytest.approx(np.percentile(slow, [2.5, 97.5]))
    assert curve.cpr is None


def test_pairs_that_discovery_saw_are_not_taken_for_held_out():
    vit = telling_vit()
    pairs, unseen = telling_pairs(vit, 6), telling_pairs(vit, 6, seed=1)
    scores = random_scores(vit, data=pairs.fingerprint())
    with pytest.warns(UserWarning, match="found on these very pairs"):
        curve = faithfulness_curve(vit, scores, pairs, controls=0, bootstrap=5)
    assert curve.conditions.held_out is False
    assert "not held out" in curve.markdown()
    assert "not held out" in curve.figure().layout.title.text
    for judged, found, expected in (
        (unseen, scores, True),
        (pairs, random_scores(vit), None),
    ):
        curve = faithfulness_curve(vit, found, judged, controls=0, bootstrap=5)
        assert curve.conditions.held_out is expected
        assert "not held out" not in curve.markdown()


def test_given_circuits_are_points_from_sparse_to_dense(tmp_path):
    vit = telling_vit()
    known, pairs = telling_pairs(vit, 6, seed=1), telling_pairs(vit, 10)
    circuits = [cv.acdc(vit, known, tau=tau) for tau in (0.001, 0.1, 0.01)]
    curve = faithfulness_curve(vit, circuits, pairs, metric="kl", controls=2, bootstrap=20)
    ordered = sorted(circuits, key=len)
    (line,) = curve.lines
    assert line.name == "circuits"
    assert [point.edges for point in line.points] == [len(circuit) for circuit in ordered]
    for circuit, point in zip(ordered, line.points, strict=True):
        assert point.share == len(circuit) / curve.all_edges
        assert point.faithfulness.value == pytest.approx(
            slow_faithfulness(vit, circuit.edges, pairs, "kl", "patch"), abs=1e-10
        )
    assert curve.cpr == line.cpr
    assert curve.conditions.method == "acdc"
    alone = faithfulness_curve(vit, circuits[:1], pairs, metric="kl", bootstrap=20)
    assert alone.cpr is alone.random_area("cpr") is None
    assert json.loads(alone.save(tmp_path / "one.json").read_text())["cpr"] is None
    assert "| – |" in alone.markdown()
    assert len(alone.figure().data) == 6


def test_a_curve_survives_its_file(tmp_path):
    vit = telling_vit()
    pairs = telling_pairs(vit, 8)
    curve = faithfulness_curve(vit, random_scores(vit), pairs, controls=2, bootstrap=20, seed=4)
    assert isinstance(curve, Curve)
    body = json.loads(curve.save(tmp_path / "a" / "curve.json").read_text())
    assert body == json.loads(json.dumps(curve.as_dict()))
    assert body["format"] == "circuitvit.faithfulness_curve"
    assert body["schema"] == 1
    assert body["conditions"]["model"] == vit.fingerprint()
    assert body["conditions"]["data"] == pairs.fingerprint()
    assert (body["conditions"]["seed"], body["conditions"]["bootstrap"]) == (4, 20)
    assert (body["conditions"]["images"], body["conditions"]["held_out"]) == (8, None)
    assert set(body["conditions"]["versions"]) == {"circuitvit", "torch"}
    assert body["cpr"]["value"] == curve.cpr.value
    assert len(body["random"]["faithfulness"]) == len(SHARES)
    assert body["connected"]["cpr"]["median"] == curve.random_area("cpr", connected=True).median
    for name in ("connected", "undefined", "checksum"):  # as files of before are
        del body[name]
    body["controls"] = [line for line in body["controls"] if line["name"].startswith("random")]
    (tmp_path / "old.json").write_text(json.dumps(body))
    old = Curve.load(tmp_path / "old.json")
    assert (old.random(), old.connected(), old.undefined) == (curve.random(), (), None)
    assert old.table()[0][-1] == "f, random edges"
    assert body["lines"][1]["points"][3]["faithfulness"]["low"] == (
        curve["absolute"].points[3].faithfulness.low
    )


def test_the_figure_has_lines_bands_and_a_level_over_a_logarithmic_axis(tmp_path):
    vit = telling_vit()
    scores = random_scores(vit, method="eap <b>")
    curve = faithfulness_curve(vit, scores, telling_pairs(vit, 8), bootstrap=20)
    figure = curve.figure()
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert [name.split(",")[0] for name in shown] == [
        "15 random",
        "15 random connected",
        "ranked by score",
        "ranked by |score|",
    ]
    assert f"CPR {curve.cpr.value:.3f}" in shown[2]
    assert f"CMD {curve.cmd.value:.3f}" in shown[3]
    assert len(figure.data) == 8
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == 1
    assert "eap &lt;b&gt;" in figure.layout.title.text
    assert list(figure.data[5].x) == list(SHARES)
    assert list(figure.data[5].y) == [p.faithfulness.value for p in curve["signed"].points]
    lonely = faithfulness_curve(vit, scores, telling_pairs(vit, 8), controls=0, bootstrap=20)
    assert len(lonely.figure().data) == 4
    text = curve.to_html(tmp_path / "curve.html").read_text()
    assert "Plotly.newPlot" in text
    assert "<b>" not in text.split("Plotly.newPlot")[-1]
    assert "src=" not in text.split("Plotly.newPlot")[-1]


def test_the_table_names_k_edges_and_areas():
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 8)
    curve = faithfulness_curve(vit, scores, pairs, controls=1, bootstrap=20)
    header, *rows = curve.table()
    assert header[-2:] == ["f, random edges", "f, random connected"]
    assert rows[5][-1] == str(curve.connected()[5])
    assert all(len(row) == len(header) for row in rows)
    assert [row[0] for row in rows] == [
        *(f"{share:.3g}" for share in SHARES),
        "CPR, k 0.001 to 1",
        "CMD, k 0.001 to 1",
    ]


def test_bad_input_is_refused_with_the_remedy(as_users_call, tmp_path):
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 4)
    circuit = scores.top(5)

    def curve(given=scores, judged=pairs, **options):
        return faithfulness_curve(vit, given, judged, **{"bootstrap": 5, **options})

    with pytest.warns(UserWarning, match="corrupt images equal their clean ones"):
        clean = cv.Pairs(clean=pairs.clean, corrupt=pairs.clean)
    calls = (
        (lambda: faithfulness_curve(scores, vit, pairs), "expected a circuitvit.ViT"),
        (lambda: curve(judged=pairs.clean), "expected circuitvit.Pairs"),
        (lambda: curve(judged=clean), "'logit_difference' needs labels"),
        (lambda: curve(replace(scores, values={})), "0 scores at level 'edge'"),
        (lambda: curve(random_scores(vit, level="node")), "level 'node', expected those of"),
        (lambda: curve([]), "a list, expected EdgeScores or at least one Circuit"),
        (lambda: curve({"a": 1.0}), "a dict, expected EdgeScores"),
        (lambda: curve([circuit, "a0.h0"]), "expected EdgeScores or at least one Circuit"),
        (lambda: curve([circuit], shares=[0.5]), "Leave out shares"),
        (lambda: curve([circuit, random_scores(vit, qkv="joint").top(3)]), "the same qkv"),
        (lambda: curve(random_scores(telling_vit(depth=1))), "belongs to another model"),
        (lambda: curve([random_scores(telling_vit(depth=1)).top(3)]), "belongs to another model"),
        (lambda: curve([circuit, random_scores(vit, ablation="zero").top(3)]), "patch, zero, so"),
        (lambda: curve(ablation="mean"), "needs reference images"),
        (lambda: curve(ablation="resample"), "ablation is 'resample'"),
        (lambda: curve(shares=0.5), "shares are 0.5, expected several"),
        (lambda: curve(shares=[]), "shares are \\[\\], expected"),
        (lambda: curve(shares=[0.0, 0.5]), "each above 0 and ≤ 1"),
        (lambda: curve(shares=[1.5]), "each above 0 and ≤ 1"),
        (lambda: curve(shares=[float("nan")]), "each above 0 and ≤ 1"),
        (lambda: curve(shares=["many"]), "a share is 'many', expected a number"),
        (lambda: curve(controls=-1), "controls is -1, expected ≥ 0"),
        (lambda: curve(controls=1.5), "controls is 1.5, expected a whole number"),
        (lambda: curve(bootstrap=0), "bootstrap is 0 and seed 0, expected ≥ 1"),
        (lambda: curve(seed=-1), "a seed ≥ 0"),
        (lambda: curve(metric=lambda x, p: x[:, 0] * float("nan")), "returned NaN"),
        (lambda: curve().save(tmp_path), "Name a file, not a folder"),
        (lambda: curve().to_html("/proc/none/curve.html"), "cannot write"),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        for call, message in calls:
            with pytest.raises(cv.CircuitError, match=message):
                call()


def test_a_curve_that_one_image_decides_is_undefined():
    vit = telling_vit()
    pairs = telling_pairs(vit, 3)

    def rarely(logits, chunk):
        """Differs between full and empty on the first image only."""
        first = (chunk.clean == pairs.clean[0]).flatten(1).all(1)
        return logits[:, 0] * first

    curve = faithfulness_curve(
        vit, random_scores(vit), pairs, metric=rarely, controls=0, bootstrap=5
    )
    assert curve.cpr == Estimate(None, None, None)
    assert "over 3 images" in curve.undefined
    many = telling_pairs(vit, 12)
    curve = faithfulness_curve(
        vit, random_scores(vit), many, metric="accuracy", controls=0, bootstrap=5
    )
    assert curve.undefined is None
    assert 0 < curve.cpr.value < 1


def test_shares_may_come_as_an_array_in_any_order_and_twice(as_users_call):
    vit = telling_vit()
    scores, pairs = random_scores(vit), telling_pairs(vit, 4)
    curve = faithfulness_curve(
        vit, scores, pairs, shares=np.array([0.5, 0.1, 0.5, 1]), controls=0, bootstrap=5
    )
    assert [point.share for point in curve["signed"].points] == [0.1, 0.5, 1.0]
