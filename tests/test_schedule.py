"""Schedules: by epochs, and to a rate other than 0. Those by steps are in test_train."""

import math

import pytest
from test_train import blobs, make_vit

import circuitvit as cv
from circuitvit.train import Recipe


def test_by_epochs_the_learning_rate_stays_within_each():
    recipe = Recipe(epochs=6, learning_rate=0.8, warmup_epochs=2, schedule_by="epoch")
    rates = [recipe.learning_rate_at(step, steps_an_epoch=5) for step in range(30)]
    expected = [0.4, 0.8] + [0.4 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(5)])


def test_the_cosine_ends_at_the_final_rate():
    recipe = Recipe(epochs=4, learning_rate=0.8, warmup_epochs=0, final_learning_rate=0.2)
    rates = [recipe.learning_rate_at(step, steps_an_epoch=100) for step in range(400)]
    assert rates[0] == 0.8
    assert rates[200] == pytest.approx(0.5)
    assert 0.2 < rates[399] < 0.2001
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("warmup", [0, 0.3, 1.5, 5, 1e308])
def test_the_warm_up_is_at_most_half_of_all(by, epochs, warmup):
    recipe = Recipe(epochs=epochs, learning_rate=0.8, warmup_epochs=warmup, schedule_by=by)
    rates = [recipe.learning_rate_at(step, steps_an_epoch=5) for step in range(5 * epochs)]
    if by == "epoch":
        rates = rates[::5]
    at_peak = [number for number, rate in enumerate(rates, 1) if rate == pytest.approx(0.8)]
    assert at_peak[0] <= max(1, len(rates) // 2)
    assert max(rates) == pytest.approx(0.8)


def test_a_final_rate_above_the_peak_is_refused():
    with pytest.raises(cv.CircuitError, match=r"final_learning_rate is 0.1, .* 0.01, or less"):
        Recipe(learning_rate=0.01, final_learning_rate=0.1)


def test_the_history_tells_the_rates_by_epochs():
    recipe = Recipe(epochs=3, batch=16, learning_rate=0.01, warmup_epochs=1, schedule_by="epoch")
    history = cv.train(make_vit(), blobs(), blobs(), recipe).history
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.01, 0.01, 0.005])
