import itertools
from collections import Counter

import pytest
from models import SHAPES, shape

import circuitvit as cv
from circuitvit.controls import random_units
from circuitvit.edge_graph import shape_of_units, units_of
from circuitvit.measure.cost import vit_macs, vit_parameters


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
        "count is 0, expected ≥ 1": lambda: random_units(config, vit_macs, 1e9, count=0),
        "most is nan": lambda: random_units(config, vit_macs, float("nan")),
        "seed is 0.5, expected a whole number": lambda: random_units(config, vit_macs, 1e9, seed=0.5),
    }.items():  # fmt: skip
        with pytest.raises(cv.CircuitError, match=message):
            call()
