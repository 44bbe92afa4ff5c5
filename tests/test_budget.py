import math

import pytest
import torch
from models import random_images, random_pairs, random_vit, shape
from test_compiler import circuit_of_units
from test_cost_table import invented

import circuitvit as cv
from circuitvit.compiler import blueprint
from circuitvit.compiler.budget import ranked_units
from circuitvit.measure import Cost, macs, parameters

SHAPE = (1, 4, 4)


def found(vit, edges=60, seed=0):
    """A circuit with scores and a path through most units."""
    scores = cv.eap(vit, random_pairs(vit, 2), method="random", seed=seed)
    return scores.greedy(min(edges, len(scores)))


def ranking(circuit):
    """The units, best first, from the circuit's edges alone."""
    total = {
        unit: sum(abs(circuit.scores[e]) for e in circuit.edges if e.startswith(f"{unit}->"))
        for unit in circuit.units()
    }
    return sorted(total, key=lambda unit: -total[unit])


def compiled_prefixes(vit, circuit, **options):
    """Every run of the ranking from its top, really compiled: no unit, the best, the best two, …"""
    order = ranking(circuit)
    models = []
    for count in range(len(order) + 1):
        names = circuit.unit_circuit().edges
        units = set(order[:count])
        kept = [
            e for e in names
            if e.split("->")[0] in units | {"embed"}
            and e.split("->")[1].removesuffix(".q").removesuffix(".k").removesuffix(".v") in units | {"logits"}
        ]  # fmt: skip
        models.append(cv.compile(vit, cv.Circuit(vit.config, kept), **options))
    return models


def price(what, vit, costs):
    return {
        "target_latency": lambda: costs.predict(vit.config),
        "target_macs": lambda: macs(vit, SHAPE),
        "target_parameters": lambda: parameters(vit),
    }[what]()


@pytest.mark.filterwarnings("ignore:this budget leaves no head and no MLP")
@pytest.mark.parametrize(
    ("name", "ablation"),
    [("uniform", "zero"), ("uniform", "mean"), ("ragged", "mean"), ("mean", "zero"), ("constants, quick", "mean")],
)  # fmt: skip
def test_the_longest_run_of_the_ranking_within_the_budget_is_kept(name, ablation):
    """Against brute force: every run is compiled, and its real cost counted."""
    vit = random_vit(shape(name), seed=2)
    circuit, costs, before = found(vit), invented(vit.config, seed=3), vit.fingerprint()
    options = dict(ablation=ablation, reference=random_images(vit, 5))
    models = compiled_prefixes(vit, circuit, **options)
    for what in ("target_latency", "target_macs", "target_parameters"):
        table = {"costs": costs} if what == "target_latency" else {}
        dense = price(what, vit, costs)
        shares = [price(what, model, costs) / dense for model in models]
        kept = set()
        for target in (0.9, 0.5, *(share for share in shares if share <= 1)):
            fitting = [count for count, share in enumerate(shares) if share <= target]
            if not fitting:
                with pytest.raises(cv.CircuitError, match=f"reaches is {min(shares):.4f}"):
                    cv.compile(vit, circuit, **options, **table, **{what: target})
                continue
            small = cv.compile(vit, circuit, **options, **table, **{what: target})
            assert small.fingerprint() == models[fitting[-1]].fingerprint()
            kept.add(fitting[-1])
        assert len(kept) >= 2
    assert vit.fingerprint() == before


def test_the_ranking_is_by_what_leaves_a_unit_and_ties_fall_by_the_pinned_order():
    config = shape()
    edges = {
        "embed->a0.h0.v": 9.0, "embed->m0": 9.0, "embed->a1.h1.q": 9.0, "embed->m1": 9.0,
        "a0.h0->m1": -2.0, "a0.h0->logits": 0.5, "m0->logits": 1.0, "a1.h1->logits": -1.0,
        "m1->logits": 3.0,
    }  # fmt: skip
    circuit = cv.Circuit(config, edges, scores=edges)
    assert ranked_units(circuit) == ("m1", "a0.h0", "a1.h1", "m0")
    assert sorted(ranking(circuit)) == sorted(ranked_units(circuit))


def test_the_choice_is_the_same_every_time_and_depends_on_the_table():
    vit = random_vit(shape(depth=3), seed=2)
    circuit = found(vit, 100)

    def table(head, neuron):
        parts = [Cost("attention", (n, 4), head * n) for n in (1, 2)] + [
            Cost("mlp", (6,), 6 * neuron)
        ]
        parts += [Cost(op, (), 0.0) for op in ("embed", "addition", "read_out")]
        return cv.Costs(vit.config, 64, tuple(parts))

    def chosen(costs):
        return cv.compile(vit, circuit, target_latency=0.5, costs=costs).config

    heads, mlps = chosen(table(1.0, 0.0)), chosen(table(0.0, 1.0))
    assert chosen(table(1.0, 0.0)) == heads
    assert chosen(table(2.0, 0.0)) == heads
    assert sum(heads.heads) == 3
    assert mlps.mlp_width.count(6) == 1
    assert heads != mlps


def test_a_budget_goes_with_fewer_neurons_and_with_fresh_weights():
    vit = random_vit(shape(), seed=2)
    circuit, costs = found(vit), invented(vit.config)
    scores = cv.eap(vit, random_pairs(vit, 2), method="random", level="neuron")
    neurons = dict(neurons=scores, keep_ratio=0.5, multiple=1)
    reference = random_images(vit, 5)
    for what in ("target_macs", "target_parameters"):
        dense = price(what, vit, costs)
        for fresh in (False, True):
            options = dict(ablation="mean", reference=reference, fresh=fresh, **neurons)
            small = cv.compile(vit, circuit, **options, **{what: 0.8})
            models = compiled_prefixes(vit, circuit, **options)
            within = [m for m in models if price(what, m, costs) <= 0.8 * dense]
            assert small.fingerprint() == within[-1].fingerprint()


def test_costs_are_measured_on_the_spot_where_none_are_given(monkeypatch):
    vit = random_vit(shape(), seed=2)
    circuit = found(vit)
    assert circuit.units()
    asked = []

    def invented_costs(config, **options):
        asked.append((config, options))
        return invented(vit.config)

    monkeypatch.setattr(blueprint, "measure_costs", invented_costs)
    small = cv.compile(vit, circuit, target_latency=0.9)
    costs = invented(vit.config)
    assert costs.predict(small.config) <= 0.9 * costs.predict(vit.config)
    assert asked[0][0] == vit.config
    assert asked[0][1]["dtype"] == torch.float64


def test_a_table_that_lacks_a_part_says_which():
    vit = random_vit(shape(), seed=2)
    some = [row for row in invented(vit.config).rows if row.op != "attention"]
    costs = cv.Costs(vit.config, 64, (*some, Cost("attention", (2, 4), 1.0)))
    with pytest.raises(
        cv.CircuitError, match=r"no attention of shape \(1, 4\); measured are \[\(2, 4\)\]"
    ):
        cv.compile(vit, found(vit), target_latency=0.5, costs=costs)


def bad_calls():
    vit = random_vit(shape())
    circuit, bare = found(vit), circuit_of_units(vit, 0, 1.0)[0]
    costs = invented(vit.config)

    def call(given=circuit, **options):
        return lambda: cv.compile(vit, given, **options)

    return {
        "target_macs is 0, expected a share above 0": call(target_macs=0),
        "target_latency is 1.1, expected a share above 0": call(target_latency=1.1),
        "target_parameters is nan, expected": call(target_parameters=math.nan),
        "target_macs is '1', expected a number": call(target_macs="1"),
        "target_macs and target_parameters are given": call(target_macs=0.5, target_parameters=0.5),
        "target_macs=0.001 can't be met: the least share": call(target_macs=0.001),
        "this circuit has no score for": call(bare, target_macs=0.5),
        "costs go with target_latency only": call(target_macs=0.5, costs=costs),
        "costs are a dict, expected what": call(target_latency=0.5, costs={}),
        "costs were measured for a ViT with another channels": call(target_latency=0.5, costs=invented(shape(channels=3))),
        "target_parameters go with level='unit'": call(level="edge", target_parameters=0.5),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_a_budget_that_leaves_no_unit_says_so():
    vit = random_vit(shape(), seed=2)
    circuit = found(vit)
    least = macs(compiled_prefixes(vit, circuit)[0], SHAPE) / macs(vit, SHAPE)
    with pytest.warns(UserWarning, match="leaves no head and no MLP"):
        small = cv.compile(vit, circuit, target_macs=least)
    assert torch.equal(torch.tensor(small.config.heads), torch.zeros(2, dtype=torch.long))
