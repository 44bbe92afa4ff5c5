"""What circuits have in common is planned once, and what can't matter is left out."""

import pytest
from random_models import shape

from circuitvit.graph.edge_graph import edge_names_of, edges_of, units_of
from circuitvit.intervene.run_plan import PlannedRead, RunPlan


def planned(config, *circuits, consistent=True, qkv="split"):
    plan = RunPlan(config, consistent=consistent)
    for edges in circuits:
        plan.add(edges, qkv)
    return plan


def units_run(plan, circuit=-1):
    names = ("embed", *units_of(plan.config))
    steps = plan.circuits[circuit].writes
    return [names[plan.writes[write].place] for step in steps for write in step]


def test_a_unit_that_reaches_no_logits_is_not_run():
    config = shape()
    edges = ["embed->m0", "m0->logits", "embed->a0.h1.v", "a0.h1->m1", "embed->a1.h0.v"]
    for consistent in (True, False):
        assert units_run(planned(config, edges, consistent=consistent)) == ["m0"]


def test_a_unit_without_a_kept_input_is_run_where_its_constant_is_not_the_ablated_value():
    config = shape()
    edges = ["a0.h0->m0", "m0->logits"]
    assert units_run(planned(config, edges)) == []
    assert units_run(planned(config, edges, consistent=False)) == ["a0.h0", "m0"]


def test_circuits_that_agree_upstream_share_what_is_written():
    config = shape()
    everything = list(edge_names_of(config))
    plan = planned(config, everything, [e for e in everything if e != "a0.h1->a1.h0.q"])
    first, second = (set(sum(circuit.writes, ())) for circuit in plan.circuits)
    names = ("embed", *units_of(config))
    assert [names[plan.writes[w].place] for w in sorted(second - first)] == ["a1.h0", "m1"]
    again = planned(config, everything, everything)
    assert again.circuits[0] == again.circuits[1]


def test_everything_is_dropped_after_the_last_circuit_that_needs_it():
    config = shape()
    everything = list(edge_names_of(config))
    plan = planned(config, everything, ["embed->m0", "m0->logits"], ["embed->logits"])
    of_model, of_one, of_none = (sum(circuit.writes, ()) for circuit in plan.circuits)
    assert not of_none
    assert plan.last_write == {0: 2, **dict.fromkeys(of_model, 0), **dict.fromkeys(of_one, 1)}
    assert len(of_one) == 1
    assert set(plan.last_read.values()) == {0}


def test_a_node_removed_everywhere_is_read_on_from_the_whole_model():
    config = shape(depth=3, heads=2)
    edges = edges_of(config)
    without = [e.name for e in edges if e.writer != "a1.h1"]
    plan = planned(config, [e.name for e in edges], without)
    names = ("embed", *units_of(config))
    fresh = {w for step in plan.circuits[1].writes for w in step}
    fresh -= {w for step in plan.circuits[0].writes for w in step}
    assert {names[plan.writes[w].place] for w in fresh} == {"m1", "a2.h0", "a2.h1", "m2"}
    reads = {read for w in fresh for read in plan.writes[w].reads}
    assert all(plan.parents[read] is not None for read in reads)
    assert len({plan.reads[read].layer for read in reads}) == 3


def test_a_read_that_keeps_little_or_another_start_goes_on_from_none():
    config = shape(depth=3, heads=2)
    plan = planned(config, ["embed->m0", "embed->m1", "m0->m1", "m1->logits"], consistent=False)
    assert plan.parents == [None] * len(plan.reads)


def test_rows_are_those_of_the_readers():
    config = shape()
    plan = planned(config, ["embed->m0", "m0->logits", "embed->a1.h0.q", "embed->a1.h0.k",
                            "a1.h0->logits"])  # fmt: skip
    assert {write.rows for write in plan.writes[1:]} == {"class"}
    layer = {layer for layer, rows, kept in plan.reads if rows == "class"}
    assert layer == {1, 2, 4}
    assert PlannedRead(2, "all", (0,)) in plan.reads  # the key
    deeper = planned(config, ["embed->m0", "m0->logits", "m0->a1.h0.k", "a1.h0->logits"])
    assert deeper.writes[1].rows == "all"


@pytest.mark.parametrize("name", ["ragged", "constants, quick"])
def test_absent_sub_layers_have_no_writers(name):
    config = shape(name)
    plan = planned(config, edge_names_of(config))
    assert units_run(plan) == list(units_of(config))
    sizes = [b - a for a, b in zip(plan.before, plan.before[1:], strict=False)]
    expected = []
    for heads, neurons in zip(config.heads, config.mlp_width, strict=True):
        expected += [heads, int(neurons > 0)]
    assert sizes == expected


def test_joint_readers_are_their_three_parts():
    config = shape()
    joint = planned(config, ["embed->a0.h0", "a0.h0->logits"], qkv="joint")
    parts = [f"embed->a0.h0.{part}" for part in "qkv"]
    assert joint.writes == planned(config, [*parts, "a0.h0->logits"]).writes


@pytest.mark.parametrize(("heads", "goes_on"), [(6, False), (7, True)])
def test_eight_kept_writers_are_enough_to_go_on_from(heads, goes_on):
    """The last MLP reads `embed` and the heads of its block, less than half of what there is."""
    config = shape(depth=3, heads=heads)
    gone = set(units_of(config)[: 2 * heads + 2])
    plan = planned(config, [edge.name for edge in edges_of(config) if edge.writer not in gone])
    (mlp,) = plan.circuits[0].writes[-1]
    (read,) = plan.writes[mlp].reads
    assert len(plan.reads[read].kept) == 1 + heads < plan.before[5] / 2
    assert (plan.parents[read] is not None) == goes_on
