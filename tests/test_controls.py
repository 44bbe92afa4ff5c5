"""Random controls: exact sizes, nothing that dangles, and draws that go everywhere."""

import re
from itertools import pairwise

import pytest
from models import SHAPES, shape

import circuitvit as cv
from circuitvit.controls import random_edges, random_families
from circuitvit.edge_graph import edge_count, edge_names_of

SMALL = cv.ViTConfig(depth=4, heads=3, width=24, classes=10)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_connected_circuits_of_every_size_have_no_edge_that_dangles(name, qkv):
    config = shape(name)
    sizes = range(edge_count(config, qkv) + 1)
    for circuits in random_families(config, sizes, qkv=qkv, connected=True, count=2, seed=0):
        for size, circuit in zip(sizes, circuits, strict=True):
            assert len(circuit) == size
            assert circuit.without_dangling("patch").edges == circuit.edges


@pytest.mark.parametrize("connected", [True, False])
def test_larger_circuits_hold_the_smaller_ones(connected):
    sizes = [int(share * edge_count(SMALL)) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)]
    for circuits in random_families(SMALL, sizes, connected=connected, count=3, seed=1):
        assert [len(circuit) for circuit in circuits] == sizes
        assert all(one <= more for one, more in pairwise(circuits))


@pytest.mark.parametrize("connected", [True, False])
def test_draws_differ_by_seed_and_number_and_are_the_same_again(connected):
    drawn = random_edges(SMALL, 20, connected=connected, count=4, seed=3)
    assert len(set(drawn)) == 4
    assert drawn == random_edges(SMALL, 20, connected=connected, count=4, seed=3)
    assert drawn[:2] == random_edges(SMALL, 20, connected=connected, count=2, seed=3)
    assert not set(drawn) & set(random_edges(SMALL, 20, connected=connected, count=4, seed=4))
    kind = "connected" if connected else "any"
    assert drawn[2].provenance.selection == f"20 edges, {kind}, draw 2"
    assert (drawn[2].provenance.method, drawn[2].provenance.seed) == ("random", 3)
    assert drawn[2].provenance.ablation is None


def test_fifteen_connected_circuits_are_spread_over_all_blocks_as_the_edges_are():
    drawn = random_edges(SMALL, 15)
    assert len(drawn) == 15
    blocks = [
        [int(re.match(r"[am](\d)", unit)[1]) for unit in circuit.units()] for circuit in drawn
    ]
    shares = [sum(found.count(block) for found in blocks) for block in range(SMALL.depth)]
    assert min(shares) > 0.12 * sum(shares)
    assert max(shares) < 0.4 * sum(shares)
    assert all(len(set(found)) >= 2 for found in blocks)
    deep = ["logits" in edge for circuit in drawn for edge in circuit]
    assert 15 <= sum(deep) < len(deep) / 2


def test_small_sizes_are_the_few_circuits_there_are():
    assert set(random_edges(SMALL, 0)) == {cv.Circuit(SMALL, ())}
    assert set(random_edges(SMALL, 1)) == {cv.Circuit(SMALL, ["embed->logits"])}
    for circuit in random_edges(SMALL, 2):
        (unit,) = circuit.units()
        assert f"{unit}->logits" in circuit
    everything = cv.Circuit(SMALL, edge_names_of(SMALL))
    assert set(random_edges(SMALL, len(everything), count=2)) == {everything}
    assert random_edges(SMALL, 5, count=0) == ()


def test_edges_drawn_one_by_one_mostly_dangle_where_they_are_few():
    size = edge_count(SMALL) // 50
    drawn = random_edges(SMALL, size, connected=False)
    left = [len(circuit.without_dangling("patch")) for circuit in drawn]
    assert sum(left) < 0.25 * size * len(drawn)


def test_sizes_that_there_are_not_are_refused(as_users_call):
    for size, options in ((-1, {}), (edge_count(SMALL) + 1, {}), (3, {"count": -1})):
        with pytest.raises(cv.CircuitError, match=f"expected 0 to {edge_count(SMALL)} edges"):
            random_edges(SMALL, size, **options)
    with pytest.raises(cv.CircuitError, match="size is 'many', expected a whole number"):
        random_edges(SMALL, "many")
