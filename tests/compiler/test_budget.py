import itertools
import math
import pickle
import re
from collections import Counter

import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from small_circuits import invented, scored

import circuitvit as cv
from circuitvit.compiler.blueprint import Blueprint
from circuitvit.compiler.ranking import (
    by_measured_worth,
    by_worth,
    effects_task,
    node_effects,
    ranked_units,
)
from circuitvit.compiler.validating import sample_images
from circuitvit.graph.circuit import edges_among
from circuitvit.graph.controls import units_within
from circuitvit.graph.edge_graph import units_of
from circuitvit.measure import Cost, macs, parameters

SHAPE = (1, 4, 4)
TARGETS = ("target_latency", "target_macs", "target_parameters")


def found(vit, edges=60, seed=0):
    """A circuit of edges with a path through most units."""
    scores = cv.eap(vit, random_pairs(vit, 2), seed=seed)
    return scores.greedy(min(edges, len(scores)))


def of_units(config, units, **options):
    return cv.Circuit(config, edges_among(config, units, "split"), **options)


def units_left(vit, small):
    """How many heads and MLPs each block has left."""
    return small.config.heads, tuple(map(bool, small.config.mlp_width))


def compiled(vit, **options):
    """What gives the model that some units are really compiled to; remembered."""
    known = {}

    def model(units):
        names = tuple(sorted(units))
        if names not in known:
            known[names] = cv.compile(vit, of_units(vit.config, names), **options)
        return known[names]

    return model


def real_cost(what, vit, costs, model=None, **options):
    """The cost of some units, by the model that they are really compiled to."""
    model = model or compiled(vit, **options)
    return lambda units: float(price(what, model(units), costs))


def price(what, vit, costs):
    return {
        "target_latency": lambda: costs.predict(vit.config),
        "target_macs": lambda: macs(vit, SHAPE),
        "target_parameters": lambda: parameters(vit),
    }[what]()


def slow_choice(vit, scores, cost, share, dense):
    """Units dropped by score for what they save, until none is left; then filled from the top."""
    left, order = list(units_of(vit.config)), []
    while left:
        worth = []
        for unit in left:
            saved = cost(left) - cost([other for other in left if other != unit])
            worth.append(scores[unit] / saved if saved > 0 else math.copysign(1e300, scores[unit]))
        unit = left[worth.index(min(worth))]
        left.remove(unit)
        order.insert(0, unit)
    if cost(order) <= share * dense:
        return set(order)
    kept = set()
    for unit in [*order, *order]:
        if unit not in kept and cost([*kept, unit]) <= share * dense:
            kept.add(unit)
    return kept


@pytest.mark.filterwarnings("ignore:no kept path", "ignore:the circuit has no kept path")
@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_blueprint_is_that_of_the_compiled_model(name):
    vit = random_vit(shape(name), seed=2)
    units, reference = units_of(vit.config), random_images(vit, 5)
    neurons = cv.eap(vit, random_pairs(vit, 2), method="random", level="neuron")
    generator = torch.Generator().manual_seed(0)
    for turn, ablation in itertools.product(range(4), ("zero", "mean")):
        some = [unit for unit in units if float(torch.rand((), generator=generator)) < 0.6]
        options = dict(ablation=ablation, reference=reference, fresh=turn == 3)
        if turn > 1 and any(u.startswith("m") for u in some):
            options |= dict(neurons=neurons, keep_ratio=0.5, multiple=1)
        circuit = of_units(vit.config, some)
        small = cv.compile(vit, circuit, **options)
        widths = {b: n for b, n in enumerate(small.config.mlp_width) if n < vit.config.mlp_width[b]}
        kept = {b: list(range(n)) for b, n in widths.items() if f"m{b}" in some}
        plan = Blueprint(tuple(some), kept)
        assert plan.shape(vit.config, ablation, fresh=turn == 3) == small.config


@pytest.mark.filterwarnings("ignore:this budget leaves .* hardly a model")
@pytest.mark.parametrize(
    ("name", "ablation"),
    [("uniform", "zero"), ("uniform", "mean"), ("mean", "zero"), ("constants, quick", "mean")],
)
def test_units_go_by_score_for_what_they_save_and_the_budget_is_filled(name, ablation):
    """Against a slow search that compiles every model and counts its real cost."""
    vit = random_vit(shape(name), seed=2)
    circuit, costs, before = scored(vit), invented(vit.config, seed=3), vit.fingerprint()
    options = dict(ablation=ablation, reference=random_images(vit, 5))
    model = compiled(vit, **options)
    for what in TARGETS:
        table = {"costs": costs} if what == "target_latency" else {}
        cost, dense = real_cost(what, vit, costs, model), price(what, vit, costs)
        kept = set()
        for share in (0.85, 0.7, 1.0):
            small = cv.compile(vit, circuit, **options, **table, **{what: share})
            expected = slow_choice(vit, circuit.scores, cost, share, dense)
            assert small.fingerprint() == model(expected).fingerprint()
            assert price(what, small, costs) <= share * dense
            kept.add(len(expected))
        assert len(kept) >= 2
    assert vit.fingerprint() == before


def test_a_unit_that_no_longer_fits_is_skipped_and_the_next_is_tried():
    config = shape(depth=3)
    sizes = {"m0": 5, "a0.h0": 2, "m1": 4, "a1.h0": 1, "m2": 3}

    def cost(units):
        return float(sum(sizes[unit] for unit in units))

    order = tuple(sizes)
    assert units_within(config, order, cost, 7.0) == ("a0.h0", "m0")
    assert units_within(config, order, cost, 8.0) == ("a0.h0", "m0", "a1.h0")
    assert units_within(config, order, cost, 4.0) == ("a0.h0", "a1.h0")  # neither m0 nor m1
    assert units_within(config, order, cost, 15.0) == ("a0.h0", "m0", "a1.h0", "m1", "m2")
    assert units_within(config, order, cost, 0.5) == ()
    assert units_within(config, ("m0", "m1", "a0.h0"), cost, 7.0) == ("a0.h0", "m0")
    assert units_within(shape(depth=3, pooling="mean"), ("m0", "m1"), cost, 5.0) == ("m0",)


def test_what_a_unit_saves_is_counted_anew_after_each_that_goes():
    """The last head of a block saves its LayerNorm, too; ties fall by the pinned order."""

    def cost(units):
        heads = Counter(unit[1] for unit in units if unit[0] == "a")
        mlps = sum(unit[0] == "m" for unit in units)
        return 10.0 * len(heads) + sum(heads.values()) + 4 * mlps

    effects = {"a0.h0": 1.0, "a0.h1": 1.5, "m0": 6.0, "a1.h0": 8.0, "m1": 6.0}
    assert by_worth(effects, cost) == ("m1", "m0", "a0.h1", "a0.h0", "a1.h0")
    harm = effects | {"m1": -1.0}
    assert by_worth(harm, cost)[-1] == "m1"
    assert by_worth({"m0": -1.0, "m1": 1.0, "a0.h0": 2.0}, lambda _: 1.0)[-1] == "m0"


def test_effects_are_measured_anew_after_each_quarter_until_the_cost_is_met():
    """Effects that depend on what is left; worked out by hand."""
    asked = []

    def measure(left):
        asked.append(left)
        return {unit: float(int(unit[1:]) * (-1 if len(left) < 7 else 1)) for unit in left}

    def cost(units):
        return float(len(units))

    units = tuple(f"m{k}" for k in range(1, 9))
    assert by_measured_worth(units, measure, cost, 6.0) == tuple(f"m{k}" for k in range(8, 0, -1))
    assert asked == [units]
    asked.clear()
    found = by_measured_worth(units, measure, cost, 5.0)
    assert found == ("m3", "m4", "m5", "m6", "m7", "m8", "m2", "m1")
    assert asked == [units, units[2:]]
    asked.clear()
    assert by_measured_worth(units, measure, cost, 0.0) == found
    assert [len(left) for left in asked] == [8, 6, 4, 2]


def test_node_scores_stay_with_the_circuit_and_rank(tmp_path):
    vit = random_vit(shape(depth=3), seed=2)
    scores = cv.eap(
        vit, random_pairs(vit, 2), metric="cross_entropy", level="node", ablation="zero"
    )
    circuit = scores.top(7)
    assert dict(circuit.scores) == {
        unit: scores[unit] for unit in scores if unit in circuit.units()
    }
    assert len(circuit.scores) == 7
    copies = (cv.Circuit.load(circuit.save(tmp_path / "c.json")), circuit.unit_circuit())
    for same in (*copies, pickle.loads(pickle.dumps(circuit)), circuit.keeping(circuit.edges)):
        assert same.scores == circuit.scores
    without = circuit.keeping(edge for edge in circuit.edges if "m2" not in edge)
    assert set(without.scores) == set(circuit.scores) - {"m2"}
    for one, other in itertools.pairwise((scores.above(-1.0).scores, dict(scores))):
        assert one == other
    kept = set(circuit.scores)
    small = cv.compile(vit, circuit, target_macs=0.6)
    cost, dense = real_cost("target_macs", vit, None), macs(vit, SHAPE)
    order = [u for u in units_of(vit.config) if u in kept]
    by_hand = units_within(
        vit.config, by_worth({u: scores[u] for u in order}, cost), cost, 0.6 * dense
    )
    expected = cv.compile(vit, of_units(vit.config, by_hand))
    assert small.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("images", [None, 5, 100])
def test_units_of_an_edge_circuit_rank_by_their_effect_on_the_logits(ablation, images):
    """Scores of edges don't count; against plain runs of the whole circuit without the unit."""
    if (ablation, images) == ("mean", None):
        return
    vit = random_vit(shape(depth=2), seed=2)
    circuit = found(vit, 40)
    other = cv.Circuit(vit.config, circuit.edges, scores=dict.fromkeys(circuit.edges, 1.0))
    units = circuit.units()
    assert len(units) >= 3
    reference = None if images is None else random_images(vit, images)
    seen = apart = sample_images(vit).detach() if images is None else reference
    if images == 100:
        ranked_on = [round(99 * k / 63) for k in range(64)]
        seen = reference[ranked_on]
        apart = reference[[k for k in range(100) if k not in ranked_on]]

    def divergence(kept, images=seen):
        full = vit(images).detach().log_softmax(-1)
        logits = cv.run_circuit(
            vit, of_units(vit.config, kept), images, ablation=ablation, reference=reference
        ).log_softmax(-1)
        return float((full.exp() * (full - logits)).sum(-1).mean())

    whole = divergence(units)
    expected = {u: divergence([v for v in units if v != u]) - whole for u in units}
    effects = node_effects(effects_task(vit, ablation, reference), units)
    assert effects == pytest.approx(expected, abs=1e-10)
    cost = real_cost("target_macs", vit, None, ablation=ablation, reference=reference)
    left, order = units, []
    while left:  # one of the two: by quarters, all effects measured anew for each
        now = divergence(left)
        again = {u: divergence([v for v in left if v != u]) - now for u in left}
        worst = by_worth(again, cost)[-math.ceil(len(units) / 4) :]
        order = [*worst, *order]
        left = tuple(u for u in left if u not in worst)
    most = 0.5 * macs(vit, SHAPE)
    both = (units_within(vit.config, o, cost, most) for o in (by_worth(effects, cost), order))
    by_hand = min(both, key=lambda kept: divergence(kept, apart))
    options = dict(ablation=ablation, reference=reference)
    best = cv.compile(vit, of_units(vit.config, by_hand), **options)
    for given in (circuit, other):
        small = cv.compile(vit, given, target_macs=0.5, **options)
        assert small.fingerprint() == best.fingerprint()


@pytest.mark.parametrize("level", ["node", "edge"])
def test_random_scores_give_other_shapes_by_seed_spread_over_depth(level):
    """Each of 30 seeds keeps half the units; every block is kept about as often as any other."""
    vit = random_vit(shape(depth=6), seed=2)
    pairs, kept, sets = random_pairs(vit, 1), Counter(), set()

    def cost(units):
        return float(len(units))

    for seed in range(30):
        scores = cv.eap(vit, pairs, method="random", level=level, seed=seed)
        circuit = scores.top(len(scores))
        order = ranked_units(vit, circuit, cost, 9.0, ablation="zero", reference=None)
        sets.add(units_within(vit.config, order, cost, 9.0))
        kept.update(unit[1] for unit in order[:9])
        if seed == 0:
            small = cv.compile(vit, circuit, target_macs=0.5)
            best = units_within(vit.config, order, real_cost("target_macs", vit, None), 6560.0)
            assert small.fingerprint() == cv.compile(vit, of_units(vit.config, best)).fingerprint()
    assert len(sets) == 30
    assert all(29 <= kept[str(block)] <= 61 for block in range(6))  # 45 each, σ = 4.5


def test_random_scores_are_never_divided_by_cost():
    """At node level the order is that of the scores."""
    vit = random_vit(shape(depth=3), seed=2)
    scores = cv.eap(vit, random_pairs(vit, 1), method="random", level="node", seed=3)
    cost, dense = real_cost("target_macs", vit, None), macs(vit, SHAPE)
    by_hand = units_within(vit.config, scores.ranked(), cost, 0.6 * dense)
    small = cv.compile(vit, scores.top(len(scores)), target_macs=0.6)
    assert small.fingerprint() == cv.compile(vit, of_units(vit.config, by_hand)).fingerprint()


def test_a_budget_goes_with_fewer_neurons_and_with_fresh_weights():
    vit = random_vit(shape(), seed=2)
    circuit, reference = scored(vit), random_images(vit, 5)
    neurons = cv.eap(vit, random_pairs(vit, 2), method="random", level="neuron")
    options = dict(
        ablation="mean", reference=reference, neurons=neurons, keep_ratio=0.5, multiple=1
    )
    for what, fresh in (("target_macs", False), ("target_parameters", True)):
        every = options | {"fresh": fresh}
        small = cv.compile(vit, circuit, **every, **{what: 0.6})
        cost = real_cost(what, vit, None, **every)
        expected = slow_choice(vit, circuit.scores, cost, 0.6, price(what, vit, None))
        by_hand = cv.compile(vit, of_units(vit.config, expected), **every)
        assert small.fingerprint() == by_hand.fingerprint()


def test_a_table_that_lacks_a_part_says_which():
    vit = random_vit(shape(), seed=2)
    some = [row for row in invented(vit.config).rows if row.op != "attention"]
    costs = cv.Costs(vit.config, 64, (*some, Cost("attention", (2, 4), 1.0)))
    with pytest.raises(
        cv.CircuitError, match=r"no attention of shape \(1, 4\); measured are \[\(2, 4\)\]"
    ):
        cv.compile(vit, scored(vit), target_latency=0.5, costs=costs)


def bad_calls():
    vit = random_vit(shape())
    circuit, none = scored(vit), cv.Circuit(vit.config, ["embed->logits"])
    costs = invented(vit.config)

    def call(given=circuit, **options):
        return lambda: cv.compile(vit, given, **options)

    return {
        "target_macs is 0, expected a share above 0": call(target_macs=0),
        "target_latency is 1.1, expected a share above 0": call(target_latency=1.1),
        "target_parameters is nan, expected": call(target_parameters=math.nan),
        "target_macs is '1', expected a number": call(target_macs="1"),
        "target_macs and target_parameters are given": call(target_macs=0.5, target_parameters=0.5),
        "target_macs drop units, but this circuit has none": call(none, target_macs=0.5),
        "costs go with target_latency only": call(target_macs=0.5, costs=costs),
        "costs are a dict, expected the result": call(target_latency=0.5, costs={}),
        "costs were measured for a ViT with another channels": call(target_latency=0.5, costs=invented(shape(channels=3))),
        "target_parameters go with level='unit'": call(level="edge", target_parameters=0.5),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


@pytest.mark.parametrize(
    ("name", "least"), [("uniform", ("a0.h0", "a0.h1", "a1.h0", "a1.h1")), ("mean", None)]
)
def test_a_budget_that_leaves_no_unit_is_refused_and_the_least_one_named(name, least):
    """Where the class token is read, patches reach it through a head only."""
    vit = random_vit(shape(name), seed=2)
    circuit, cost = scored(vit), real_cost("target_macs", vit, None)
    singles = {unit: cost([unit]) for unit in least or units_of(vit.config)}
    share = min(singles.values()) / macs(vit, SHAPE)
    said = f"target_macs=0.01 leaves no model that reads images: the least share .* is {math.ceil(share * 1e4) / 1e4:.4f}, with ([am0-9.h]+) alone"
    with pytest.raises(cv.CircuitError, match=said) as told:
        cv.compile(vit, circuit, target_macs=0.01)
    unit = re.search(said, str(told.value))[1]
    assert singles[unit] == min(singles.values())
    with pytest.warns(UserWarning, match="hardly a model"):
        small = cv.compile(vit, circuit, target_macs=math.ceil(share * 1e4) / 1e4)
    assert sum(small.config.heads) + sum(map(bool, small.config.mlp_width)) == 1
