import json

import pytest
import torch
from random_models import SHAPES, random_images, random_vit, shape
from small_circuits import invented

import circuitvit as cv
from circuitvit.graph.edge_graph import units_of
from circuitvit.measure import macs, parameters


def totals(found):
    return [
        sum(getattr(row, name) for row in found.rows)
        for name in ("latency_ms", "macs", "parameters")
    ]


def cost_of(vit, costs):
    return [costs.predict(vit.config), macs(vit, (1, 4, 4)), parameters(vit)]


@pytest.mark.parametrize("name", SHAPES)
def test_rows_add_up_to_the_difference_of_real_models(name):
    vit = random_vit(shape(name), seed=2)
    costs, kept = invented(vit.config), units_of(vit.config)[::2]
    names = set(cv.edge_graph(vit.config).edges)
    kept_edges = [f"embed->{u}" for u in kept if ("embed", u) in names]
    kept_edges += [f"embed->{u}.v" for u in kept if ("embed", f"{u}.v") in names]
    circuit = cv.Circuit(vit.config, [*kept_edges, *(f"{u}->logits" for u in kept)])
    assert circuit.units() == kept
    small = cv.compile(vit, circuit, ablation="mean", reference=random_images(vit, 5))
    bare = cv.compile(vit, circuit)
    for given, model in ((kept, bare), (circuit, bare), (bare, bare), (small, small)):
        found = cv.savings(vit, given, costs)
        expected = [a - b for a, b in zip(cost_of(vit, costs), cost_of(model, costs), strict=True)]
        assert totals(found) == pytest.approx(expected, abs=1e-9)
        left = [found.left.latency_ms, found.left.macs, found.left.parameters]
        assert left == pytest.approx(cost_of(model, costs))
    rows = cv.savings(vit, kept, costs).rows
    assert [row.name for row in rows] == [u for u in units_of(vit.config) if u not in kept]


def test_a_heads_saving_is_the_difference_of_the_attention_with_and_without_it():
    vit = random_vit(shape())
    costs = invented(vit.config)
    ms = {(row.op, row.shape): row.median_ms for row in costs.rows}
    found = cv.savings(
        vit, [u for u in units_of(vit.config) if u not in ("a1.h0", "a1.h1", "m0")], costs
    )
    m0, first, second = found.rows
    assert (m0.name, first.name, second.name) == ("m0", "a1.h0", "a1.h1")
    assert m0.latency_ms == pytest.approx(ms["mlp", (6,)])
    assert first.latency_ms == pytest.approx(ms["attention", (2, 4)] - ms["attention", (1, 4)])
    assert second.latency_ms == pytest.approx(ms["attention", (1, 4)] - ms["addition", ()])
    assert second.parameters - first.parameters == 2 * 8  # the LayerNorm
    assert first.parameters == 4 * 8 * 4 + 3 * 4
    assert first.macs == second.macs == 4 * 5 * 8 * 4 + 2 * 5 * 5 * 4


def test_of_a_compiled_model_each_sub_layer_and_the_constants_have_a_row(tmp_path):
    vit = random_vit(shape(), seed=2)
    small = cv.prune_mlp(cv.prune_heads(vit, {0: [1]}), {1: [0, 1]})
    found = cv.savings(vit, small, invented(vit.config))
    assert [row.name for row in found.rows] == ["a0: 1 of 2 heads", "m1: 2 of 6 neurons"]
    circuit = cv.Circuit(vit.config, ["embed->a0.h1.v", "a0.h1->logits"])
    small = cv.compile(vit, circuit, ablation="mean", reference=random_images(vit, 5))
    found = cv.savings(vit, small)
    assert found.rows[-1].name == "constants"
    assert found.rows[-1].parameters < 0
    assert found.rows[-1].latency_ms is None
    assert "saves ms" not in found.markdown()
    folder = found.save(tmp_path)
    assert json.loads((folder / "savings.json").read_text())["left"]["parameters"] == parameters(
        small
    )
    assert "| the dense model | " in (folder / "savings.md").read_text()
    assert "100.0%" in found._repr_html_()


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    vit = random_vit(shape())
    for kept, message in (
        (["a5.h0"], r"1 units do not exist in this ViT \(a5.h0\)"),
        (random_vit(shape("mean")), "no smaller version of the first"),
        (random_vit(shape(mlp_width=7)), "no smaller version of the first"),
        (random_vit(shape(depth=3)), "no smaller version of the first"),
        (cv.Circuit(shape(heads=(2, 1)), []), "belongs to another model"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.savings(vit, kept)
    with pytest.raises(cv.CircuitError, match="another channels"):
        cv.savings(vit, ["m0"], invented(shape(channels=3)))
    with pytest.raises(cv.CircuitError, match="got Linear"):
        cv.savings(torch.nn.Linear(2, 2), ["m0"])
