"""Random controls: exact costs and sizes, nothing that dangles, and draws that go everywhere."""

import itertools
import re
from collections import Counter
from itertools import pairwise

import pytest
from random_models import SHAPES, shape

import circuitvit as cv
from circuitvit.graph.controls import random_edges, random_families, random_units
from circuitvit.graph.edge_graph import edge_count, edge_names_of, shape_of_units, units_of
from circuitvit.measure.models.cost import vit_macs, vit_parameters

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


def fillings(config, price, most):
    """Every set that chance can give, by trying each subset: it fits, and nothing more does."""
    units = units_of(config)
    fits = {
        kept
        for size in range(len(units) + 1)
        for kept in itertools.combinations(units, size)
        if price(shape_of_units(config, kept, constants=False)) <= most
    }
    return {
        kept
        for kept in fits
        if not any(
            tuple(u for u in units if u in {*kept, more}) in fits for more in set(units) - {*kept}
        )
    }


def test_units_drawn_at_random_fill_the_cost_and_differ():
    config = shape(depth=6)
    most = 0.5 * vit_macs(config)
    drawn = random_units(config, vit_macs, most, seed=1)
    assert len(drawn) == len(set(drawn)) == 15
    for kept in drawn:
        assert kept == tuple(unit for unit in units_of(config) if unit in kept)
        assert vit_macs(shape_of_units(config, kept, constants=False)) <= most
        for more in set(units_of(config)) - set(kept):
            assert vit_macs(shape_of_units(config, {*kept, more}, constants=False)) > most
    assert random_units(config, vit_macs, most, seed=1) == drawn
    assert random_units(config, vit_macs, most, seed=2) != drawn
    assert random_units(config, vit_macs, most, seed=1, count=4) == drawn[:4]


def test_every_unit_is_drawn_about_as_often_as_its_like():
    config = shape(depth=6)
    drawn = random_units(config, vit_macs, 0.5 * vit_macs(config), count=120)
    kept = Counter(unit for units in drawn for unit in units)
    heads, mlps = (
        [kept[unit] for unit in units_of(config) if ("." in unit) is kind] for kind in (True, False)
    )
    assert len(drawn) == 120
    for counts in (heads, mlps):  # σ = 5.5
        assert max(counts) - min(counts) <= 36


@pytest.mark.parametrize("name", ["uniform", "ragged", "mean"])
def test_where_few_sets_are_possible_all_are_given(name):
    config = shape(name)
    for price, share in ((vit_macs, 0.5), (vit_parameters, 0.8), (vit_macs, 1.0)):
        most = share * price(config)
        possible = fillings(config, price, most)
        assert set(random_units(config, price, most, count=50)) == possible
        assert 1 <= len(possible) < 50


@pytest.mark.parametrize("name", SHAPES)
def test_a_drawn_model_reads_images(name):
    """Where only the class token is read, patches reach it through a head."""
    config = shape(name)
    units = units_of(config)
    least = min(
        vit_macs(shape_of_units(config, [unit], constants=False))
        for unit in units
        if "." in unit or "class" not in config.pooling or config.pooling == "class_mean"
    )
    for kept in random_units(config, vit_macs, float(least), count=9):
        assert kept
        assert any("." in unit for unit in kept) or "mean" in config.pooling


def test_constants_of_removed_units_count_where_they_are_written():
    config = shape(depth=3)
    most = 0.7 * vit_parameters(config)
    for kept in random_units(config, vit_parameters, most, constants=True):
        assert vit_parameters(shape_of_units(config, kept, constants=True)) <= most
    loose = random_units(config, vit_parameters, most, constants=False)
    assert any(vit_parameters(shape_of_units(config, k, constants=True)) > most for k in loose)


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    config = shape()
    least = vit_macs(shape_of_units(config, ["a0.h0"], constants=False))
    for message, call in {
        f"costs {least} at least \\(with a0.h0\\)": lambda: random_units(config, vit_macs, least - 1.0),
        "count -1 and seed 0, expected": lambda: random_units(config, vit_macs, 1e9, count=-1),
        "seed -1, expected a cost": lambda: random_units(config, vit_macs, 1e9, seed=-1),
        "most is nan": lambda: random_units(config, vit_macs, float("nan")),
        "price is 5, expected a function": lambda: random_units(config, 5, 1e9),
        "seed is 0.5, expected a whole number": lambda: random_units(config, vit_macs, 1e9, seed=0.5),
    }.items():  # fmt: skip
        with pytest.raises(cv.CircuitError, match=message):
            call()
    assert random_units(config, vit_macs, 1e9, count=0) == ()


def test_both_are_public():
    assert (cv.random_units, cv.random_edges) == (random_units, random_edges)
