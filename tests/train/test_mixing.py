"""MixUp and CutMix: against a loop over pixels, and their draws."""

import math

import pytest
import torch
from small_training import SHAPE, blobs, make_vit

import circuitvit as cv
from circuitvit.train import Recipe
from circuitvit.train.batches import EpochBatches, Mix

CPU = torch.device("cpu")


def mixes(**settings):
    recipe = Recipe(batch=32, **settings)
    return [Mix.drawn(recipe, epoch, step, 8) for epoch in range(5) for step in range(40)]


def test_mixup_is_the_weighted_mean_of_images_and_of_labels():
    generator = torch.Generator().manual_seed(0)
    own, others = torch.rand(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    mix = Mix(torch.tensor([2, 0, 1]), 0.7)
    torch.testing.assert_close(mix.images(own, others), 0.7 * own + 0.3 * others)
    targets = mix.targets(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), own, 4)
    expected = torch.tensor([[0.7, 0, 0.3, 0], [0.3, 0.7, 0, 0], [0, 0, 1, 0]])
    torch.testing.assert_close(targets, expected.double())


def test_cutmix_takes_a_box_from_the_partner_and_its_share_of_the_label():
    for mix in mixes(cutmix=1.0):
        own, others = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
        mixed = mix.images(own, others)
        top, bottom, left, right = mix.box
        for y in range(8):
            for x in range(8):
                assert mixed[0, 0, y, x] == (top <= y < bottom and left <= x < right)
        assert mix.share == pytest.approx(1 - mixed.mean().item())
        assert not own.any()


def test_shares_are_of_the_beta_distribution_and_both_kinds_are_drawn():
    shares = torch.tensor([mix.share for mix in mixes(mixup=0.2)])
    assert shares.mean() == pytest.approx(0.5, abs=0.1)
    # Var of Beta(α, α) is 1 ÷ (4 (2α + 1)).
    assert shares.var() == pytest.approx(1 / (4 * 1.4), rel=0.15)
    both = [mix.box is None for mix in mixes(mixup=1.0, cutmix=1.0)]
    assert 60 < sum(both) < 140
    assert all(torch.equal(m.partner.sort().values, torch.arange(32)) for m in mixes(mixup=1.0))


def test_nothing_is_mixed_unless_asked_for():
    assert mixes() == [None] * 200
    assert mixes(mixup=1.0, augment=False) == [None] * 200


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_any_split_of_a_batch_holds_the_images_of_the_whole(settings):
    recipe = Recipe(batch=12, rotate=20, noise=0.2, **settings)
    whole = EpochBatches(blobs(), recipe, 4, 3, CPU).batch(1, torch.arange(12))
    for rows in (torch.arange(12)[1::2], torch.tensor([5]), torch.arange(7)):
        part = EpochBatches(blobs(), recipe, 4, 3, CPU).batch(1, rows)
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-12)
        assert torch.equal(part.targets, whole.targets[rows])


def test_the_loss_of_mixed_images_is_the_mixed_loss():
    """λ · CE(first) + (1 − λ) · CE(second), in one step without augmentation of places."""
    recipe = Recipe(epochs=1, batch=16, mixup=1.0, translate=0, rotate=0, label_smoothing=0.1)
    vit, images = make_vit(), blobs(16)
    history = cv.train(vit, images, images, recipe).history
    mix = Mix.drawn(recipe, 0, 0, SHAPE["image_size"])
    order = EpochBatches(images, recipe, 4, 0, CPU).order
    own, others = order, order[mix.partner]
    mixed = mix.share * images.images[own] + (1 - mix.share) * images.images[others]
    log_p = vit(mixed).log_softmax(dim=1)

    def loss(labels):
        nll = -log_p[torch.arange(16), labels]
        return (0.9 * nll + 0.1 * -log_p.mean(dim=1)).mean()

    own_loss, other_loss = loss(images.labels[own]), loss(images.labels[others])
    expected = mix.share * own_loss + (1 - mix.share) * other_loss
    assert history[0]["loss"] == pytest.approx(expected.item(), rel=1e-9)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    """All but the last digits, even of 16 images in 3 parts, mixed and with dropped paths."""
    more = {"mixup": 0.5, "drop_path": 0.3, "noise": 0.1, "weight_decay": 0.0, "clip": 1e6}
    runs = [
        cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16, accumulate=n, **more))
        for n in (1, 3, 16)
    ]
    for run in runs[1:]:
        for name, value in runs[0].vit.state_dict().items():
            torch.testing.assert_close(run.vit.state_dict()[name], value, rtol=1e-6, atol=1e-8)
        assert math.isclose(run.history[1]["loss"], runs[0].history[1]["loss"], rel_tol=1e-9)
