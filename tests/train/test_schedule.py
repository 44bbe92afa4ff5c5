"""Schedules: by epochs, and to a rate other than 0. Those by steps are in test_train."""

import math

import pytest
from small_training import blobs, make_vit

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


def test_the_recipe_for_photographs_has_deits_numbers():
    recipe = Recipe.photos()
    assert (recipe.epochs, recipe.batch, recipe.warmup_epochs) == (100, 256, 5)
    assert recipe.learning_rate == pytest.approx(5e-4 * 256 / 512)
    assert recipe.final_learning_rate == pytest.approx(recipe.learning_rate / 50)
    assert (recipe.weight_decay, recipe.label_smoothing, recipe.drop_path) == (0.05, 0.1, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.erase) == (0.8, 1.0, 0.25)
    assert (recipe.rand_augment, recipe.rand_augment_magnitude) == (2, 9)
    assert (recipe.horizontal_flip, recipe.crop_scale) == (True, 0.08)
    assert (recipe.translate, recipe.rotate, recipe.augment) == (0, 0, True)
    tuned = Recipe.photos(pretrained=True)
    assert (tuned.epochs, tuned.weight_decay, tuned.mixup) == (20, 0.1, 0.8)
    assert tuned.learning_rate == pytest.approx(1e-5 * 256 / 512)
    assert tuned.final_learning_rate == pytest.approx(tuned.learning_rate / 10)


def test_what_is_given_beside_photos_wins():
    recipe = Recipe.photos(epochs=7, mixup=0.0, batch=1024)
    assert (recipe.epochs, recipe.mixup, recipe.cutmix) == (7, 0.0, 1.0)
    assert recipe.learning_rate == pytest.approx(1e-3), "the peak follows the batch"
    given = Recipe.photos(learning_rate=1e-6)
    assert (given.batch, given.learning_rate) == (256, 1e-6)
    assert given.final_learning_rate == pytest.approx(2e-8), "the end follows the peak"
    assert Recipe.photos(final_learning_rate=0.0).final_learning_rate == 0.0
    for wrong in ({"batch": 0}, {"learning_rate": "much"}, {"crop_scale": 2}):
        with pytest.raises(cv.CircuitError, match=f"invalid Recipe: {next(iter(wrong))} is "):
            Recipe.photos(**wrong)


def test_numbers_that_no_training_can_have_are_refused():
    for make in (Recipe, Recipe.photos):
        for name in ("batch", "learning_rate"):
            with pytest.raises(
                cv.CircuitError, match=f"{name} is a number of some 398 digits, exp"
            ):
                make(**{name: 10**400})
