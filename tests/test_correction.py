"""A budget of latency held against the clock, which is a function here."""

from types import SimpleNamespace

import pytest
import torch
from models import random_vit, shape
from test_budget import SHAPE, scored
from test_cost_table import invented

import circuitvit as cv
from circuitvit.compiler import blueprint, correction
from circuitvit.compiler.correction import corrected
from circuitvit.measure.cost_table import parts_of


def settle(target, sizes, slower):
    """Which of several models, each a unit more, is chosen where they take another time."""
    asked = []
    order = tuple(f"m{k}" for k in range(len(sizes)))

    def measure(units):
        asked.append(len(units))
        return slower(sizes[len(units) - 1])

    def solve(share):
        fitting = [k for k, size in enumerate(sizes, 1) if size <= share + 1e-9]
        if not fitting:
            raise cv.CircuitError("nothing fits")
        return order[: fitting[-1]]

    kept = corrected(target, solve, lambda units: sizes[len(units) - 1], measure)
    return len(kept), asked


def test_a_latency_target_is_measured_and_corrected():
    """Sizes are predicted shares; the true ones are worked out by hand."""
    fine = [k / 100 for k in range(1, 101)]
    assert settle(0.5, fine, lambda size: size) == (50, [50])
    assert settle(0.5, fine, lambda size: 1.1 * size) == (45, [50, 45])
    assert settle(0.5, fine, lambda size: 0.2 + 0.7 * size) == (43, [50, 45, 43])
    assert settle(0.5, fine, lambda size: 0.9 * size) == (55, [50, 55])
    coarse = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert settle(0.5, coarse, lambda size: size) == (2, [2])  # one unit more would pass it
    assert settle(0.62, coarse, lambda size: 1.2 * size) == (2, [3, 2])
    assert settle(0.5, coarse, lambda size: 0.5 * size) == (5, [2, 5])


def test_a_latency_target_that_is_not_met_is_said_with_what_was_measured():
    fine = [k / 100 for k in range(1, 101)]
    said = r"target_latency=0.5 is not met within 2%: .* predicted 0.080 .* measured 0.680"
    with pytest.warns(UserWarning, match=said):
        assert settle(0.5, fine, lambda size: 0.6 + size)[0] == 8
    noise = iter([0.6, 0.3, 0.8, 0.2])
    with pytest.warns(UserWarning, match="measured 0.300"):
        assert len(settle(0.5, fine, lambda _: next(noise))[1]) == correction.ROUNDS == 4
    with pytest.raises(cv.CircuitError, match="nothing fits"):
        settle(0.005, fine, lambda size: size)
    assert correction.CLOSE == 0.02


def test_without_costs_these_are_measured_and_the_choice_is_corrected(monkeypatch):
    """The clock is the table's, but a block with both heads takes twice as long."""
    vit = random_vit(shape(depth=3), seed=2)
    circuit, costs, asked = scored(vit), invented(vit.config), []

    def measured(config, **options):
        asked.append(options)
        return costs

    def slower(vit, config, batch):
        assert batch == 64
        double = sum(heads == 2 for heads in config.heads)
        return 1.3 ** (double - 3) * costs.predict(config) / costs.predict(vit.config)

    monkeypatch.setattr(blueprint, "measure_costs", measured)
    monkeypatch.setattr(blueprint, "measured_share", slower)
    small = cv.compile(vit, circuit, target_latency=0.6)
    share = slower(vit, small.config, 64)
    plain = cv.compile(vit, circuit, target_latency=0.6, costs=costs)
    assert slower(vit, plain.config, 64) < share <= 0.612
    assert len(asked) == 1
    assert asked[0]["dtype"] == torch.float64
    table = {part for config in asked[0]["shapes"] for part in parts_of(config)}
    assert {row[:2] for row in table} == {
        ("embed", ()), ("addition", ()), ("read_out", ()), ("attention", (1, 4)),
        ("attention", (2, 4)), ("mlp", (6,)),
    }  # fmt: skip


def test_the_measured_share_is_of_the_shape_beside_the_dense_model(monkeypatch):
    vit, seen = random_vit(shape(), seed=2).float(), {}

    def timed(models, images, *, baseline, batch, rounds):
        seen.update(models=models, images=images, rest=(baseline, batch, rounds))
        return {"small": SimpleNamespace(ratio=0.75)}

    monkeypatch.setattr(correction, "latency", timed)
    smaller = shape(heads=(1, 0), mlp_constant=(True, False))
    assert correction.measured_share(vit, smaller, 64) == 0.75
    assert seen["models"]["small"].config == smaller
    assert seen["models"]["dense"] is vit
    assert seen["rest"] == ("dense", 64, 7)
    assert seen["images"].shape[1:] == SHAPE
    assert correction.measured_share(vit, vit.config, 64) == 1
