"""Completeness and minimality: what removing parts of a circuit does."""

import json

import numpy as np
import pytest
from random_models import random_images, random_vit, shape
from telling_pairs import random_scores, slow_metric, telling_pairs, telling_vit

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of, node_named


def without(edges, removed, of):
    if of == "edges":
        return [edge for edge in edges if edge not in removed]
    ends = [(edge, *edge.split("->")) for edge in edges]
    return [e for e, w, r in ends if w not in removed and node_named(r).unit not in removed]


def scale(vit, pairs, *question):
    full, empty = (
        slow_metric(vit, edges, pairs, *question) for edges in (edge_names_of(vit.config), ())
    )
    return lambda edges: (slow_metric(vit, edges, pairs, *question) - empty) / (full - empty)


@pytest.mark.parametrize("of", ["edges", "units"])
@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
def test_knock_outs_equal_hooked_runs_of_circuit_and_model(of, ablation):
    vit = telling_vit()
    pairs, reference = telling_pairs(vit, 10), random_images(vit, 5, seed=9)
    circuit = random_scores(vit, ablation=ablation).top(30)
    found = cv.completeness(
        vit, circuit, pairs, of=of, knockouts=6, reference=reference, bootstrap=20
    )
    f = scale(vit, pairs, "logit_difference", ablation, reference)
    everything = edge_names_of(vit.config)
    assert found.faithfulness.value == pytest.approx(f(circuit.edges), abs=1e-10)
    names = circuit.edges if of == "edges" else circuit.units()
    gaps = []
    for knockout in found.knockouts:
        removed = knockout.removed
        assert 1 <= len(removed) <= len(names)
        assert list(removed) == [name for name in names if name in removed]
        own, model = f(without(circuit.edges, removed, of)), f(without(everything, removed, of))
        assert knockout.circuit.value == pytest.approx(own, abs=1e-10)
        assert knockout.model.value == pytest.approx(model, abs=1e-10)
        gaps.append(abs(own - model))
    assert found.gap.value == pytest.approx(np.mean(gaps), abs=1e-10)
    assert found.gap.low <= found.gap.high
    assert (found.of, found.conditions.ablation) == (of, ablation)


def test_the_whole_model_as_a_circuit_is_complete():
    vit = telling_vit()
    full = cv.Circuit(vit.config, edge_names_of(vit.config))
    found = cv.completeness(vit, full, telling_pairs(vit, 6), ablation="patch", bootstrap=10)
    assert found.gap.value == found.gap.low == found.gap.high == 0
    assert found.faithfulness.value == 1
    assert len(found.knockouts) == 20


def test_knock_outs_are_the_same_for_a_seed_and_another_for_another():
    vit = telling_vit()
    circuit, pairs = random_scores(vit).top(30), telling_pairs(vit, 5)
    found = [cv.completeness(vit, circuit, pairs, bootstrap=5, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert [k.removed for k in found[0].knockouts] != [k.removed for k in found[2].knockouts]


@pytest.mark.parametrize("ablation", ["patch", "zero"])
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_costs_equal_hooked_runs_without_each_edge(ablation, qkv):
    vit = random_vit(shape("ragged"), seed=6)
    pairs = telling_pairs(vit, 7)
    circuit = random_scores(vit, qkv=qkv, ablation=ablation).top(14)
    found = cv.minimality(vit, circuit, pairs, metric="kl", bootstrap=20)
    assert list(found.costs) == list(circuit.edges)
    everything = edge_names_of(vit.config, qkv)
    question = ("kl", ablation, None, qkv)
    full, empty, own = (
        slow_metric(vit, edges, pairs, *question) for edges in (everything, (), circuit.edges)
    )
    assert found.faithfulness.value == pytest.approx((own - empty) / (full - empty), abs=1e-10)
    for edge, cost in found.costs.items():
        left = [kept for kept in circuit.edges if kept != edge]
        change = slow_metric(vit, left, pairs, *question) - own
        assert cost.metric == pytest.approx(change, abs=1e-10)
        assert cost.share.value == pytest.approx(-change / (full - empty), abs=1e-10)


def test_a_dangling_edge_costs_nothing_and_is_needless():
    vit = telling_vit()
    pairs = telling_pairs(vit, 6)
    circuit = cv.Circuit(vit.config, ["embed->m0", "embed->logits", "m0->logits", "embed->m1"])
    found = cv.minimality(vit, circuit, pairs, metric="kl", ablation="patch", bootstrap=30)
    assert found.costs["embed->m1"].share.value == found.costs["embed->m1"].metric == 0
    assert "embed->m1" in found.needless()
    assert set(found.needless()) == {e for e, c in found.costs.items() if c.share.low <= 0}
    values = [cost.share.value for _, cost in found.ranked()]
    assert values == sorted(values, reverse=True)


def test_more_circuits_than_fit_at_once_come_out_the_same(monkeypatch):
    from circuitvit.measure.circuits import losses

    vit = telling_vit()
    circuit, pairs = random_scores(vit).top(20), telling_pairs(vit, 5)
    whole = cv.minimality(vit, circuit, pairs, bootstrap=10)
    monkeypatch.setattr(losses, "CIRCUITS_AT_ONCE", 3)
    monkeypatch.setattr(losses, "images_in_chunk", lambda vit: 2)
    for name, cost in cv.minimality(vit, circuit, pairs, bootstrap=10).costs.items():
        assert cost.metric == pytest.approx(whole.costs[name].metric, abs=1e-12)


def test_results_show_and_save_themselves(tmp_path):
    vit = telling_vit()
    circuit, pairs = random_scores(vit).top(30), telling_pairs(vit, 6)
    complete = cv.completeness(vit, circuit, pairs, knockouts=4, bootstrap=10, seed=3)
    minimal = cv.minimality(vit, circuit, pairs, bootstrap=10)
    for found, kind in ((complete, "completeness"), (minimal, "minimality")):
        body = json.loads(found.save(tmp_path / f"{kind}.json").read_text())
        assert body == json.loads(json.dumps(found.as_dict()))
        assert (body["format"], body["schema"]) == (f"circuitvit.{kind}", 1)
        assert body["conditions"]["model"] == vit.fingerprint()
        header, *rows = found.table()
        assert all(len(row) == len(header) for row in rows)
        assert "Plotly.newPlot" in found.to_html(tmp_path / f"{kind}.html").read_text()
    assert len(complete.figure().data[0].x) == 4
    assert complete.figure().layout.shapes[0].type == "line"
    assert complete.figure().layout.xaxis.range == complete.figure().layout.yaxis.range
    assert "| mean gap |" in complete.markdown()
    assert list(minimal.figure().data[0].y) == [c.share.value for _, c in minimal.ranked()]
    assert "| and 10 more |" in minimal.markdown()
    assert "6 pairs, logit_difference, patch" in minimal.markdown()


def test_pairs_that_discovery_saw_are_named():
    vit = telling_vit()
    pairs = telling_pairs(vit, 5)
    circuit = random_scores(vit, data=pairs.fingerprint()).top(10)
    for examine in (cv.completeness, cv.minimality):
        with pytest.warns(UserWarning, match="found on these very pairs"):
            found = examine(vit, circuit, pairs, metric="kl", bootstrap=5)
        assert found.conditions.held_out is False


@pytest.mark.parametrize("name", ["completeness", "minimality"])
def test_bad_input_is_refused_with_the_remedy(name, as_users_call, tmp_path):
    vit = telling_vit()
    pairs = telling_pairs(vit, 4)
    circuit = random_scores(vit).top(20)
    empty = circuit.keeping(())
    with pytest.warns(UserWarning, match="corrupt images equal their clean ones"):
        same = cv.Pairs(clean=pairs.clean, corrupt=pairs.clean)
    other = cv.Circuit(shape("ragged"), ["embed->logits"])
    examine = getattr(cv, name)
    calls = (
        (lambda: examine(circuit, vit, pairs), "expected a circuitvit.ViT"),
        (lambda: examine(vit, circuit.edges, pairs), "expected a circuitvit.Circuit"),
        (lambda: examine(vit, other, pairs), "belongs to another model"),
        (lambda: examine(vit, circuit, pairs.clean), "expected circuitvit.Pairs"),
        (lambda: examine(vit, circuit, pairs, ablation="mean"), "needs reference images"),
        (lambda: examine(vit, circuit, same, metric="kl"), "faithfulness is undefined"),
        (lambda: examine(vit, empty, pairs), "has no edges to remove"),
        (lambda: examine(vit, circuit, pairs, bootstrap=0), "≥ 1 resamples"),
        (lambda: examine(vit, circuit, pairs, metric=lambda x, p: x / 0), "returned"),
        (lambda: examine(vit, circuit, pairs, bootstrap=5).save(tmp_path), "Name a file"),
    )
    for call, message in calls:
        with pytest.raises(cv.CircuitError, match=message):
            call()


def test_knock_outs_that_make_no_sense_are_refused(as_users_call):
    vit = telling_vit()
    pairs = telling_pairs(vit, 4)
    circuit = random_scores(vit).top(20)
    lonely = circuit.keeping(["embed->m1"])
    for options, message in (
        ({"of": "heads"}, "of is 'heads'"),
        ({"knockouts": 0}, "knockouts 0, expected"),
        ({"knockouts": "all"}, "knockouts is 'all', expected a whole number"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.completeness(vit, circuit, pairs, **options)
    with pytest.raises(cv.CircuitError, match="has no units to remove"):
        cv.completeness(vit, lonely, pairs, of="units")
