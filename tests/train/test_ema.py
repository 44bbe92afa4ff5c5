"""Averaged weights, the best epoch, and stopping early: against loops over recorded weights."""

import pytest
import torch
from small_training import blobs, make_vit, same_weights, timeless

import circuitvit as cv
from circuitvit.train import Recipe, training
from circuitvit.train.epoch_records import best_epoch, is_over
from circuitvit.train.optimizer import WeightAverage


def entries(*accuracies, losses=()):
    losses = losses or accuracies
    return [
        {"epoch": i, "validation_accuracy": a, "validation_loss": loss}
        for i, (a, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
    ]


def test_the_average_is_that_of_the_formula(monkeypatch):
    """m ← d·m + (1 − d)·w after each step, d = min(decay, (1 + step) ÷ (10 + step))."""
    seen, update = [], WeightAverage.update

    def watched(self, trained, step):
        seen.append({n: p.detach().clone() for n, p in trained.named_parameters()})
        update(self, trained, step)

    monkeypatch.setattr(WeightAverage, "update", watched)
    vit, recipe = make_vit(), Recipe(epochs=3, batch=16, ema_decay=0.4, learning_rate=1e-2)
    result = cv.train(vit, blobs(), blobs(seed=1), recipe)
    assert len(seen) == 9
    for name, start in vit.named_parameters():
        mean = start.detach()
        for step, weights in enumerate(seen):
            decay = min(0.4, (1 + step) / (10 + step))
            mean = decay * mean + (1 - decay) * weights[name]
        torch.testing.assert_close(dict(result.vit.named_parameters())[name].detach(), mean)
    hits = result.vit(blobs(seed=1).images).argmax(dim=1) == blobs(seed=1).labels
    assert result.history[-1]["validation_accuracy"] == hits.double().mean().item()


def test_averaging_leaves_the_trained_weights_as_they_are(tmp_path):
    from circuitvit.train.checkpoint import TrainingCheckpoint

    plain = cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16))
    recipe = Recipe(epochs=2, batch=16, ema_decay=0.9)
    averaged = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    kept = TrainingCheckpoint.load(tmp_path / "checkpoint.safetensors")
    for name, value in plain.vit.state_dict().items():
        assert torch.equal(kept.part("model")[name], value)
        assert torch.equal(kept.part("average")[name], averaged.vit.state_dict()[name])
    assert not same_weights(plain.vit, averaged.vit)


def test_the_best_epoch_is_the_first_that_none_beats():
    recipe, by_loss = Recipe(patience=2, epochs=9), Recipe(patience=2, watch="loss", epochs=9)
    history = entries(0.5, 0.7, 0.7, 0.6, losses=(3.0, 2.0, 1.0, 1.5))
    assert best_epoch(history, recipe) == 2
    assert best_epoch(history, by_loss) == 3
    assert [is_over(history[:n], recipe) for n in range(5)] == [False, False, False, False, True]
    assert not is_over(history, by_loss)
    assert not is_over(history, Recipe(epochs=9))
    assert is_over(history, Recipe(epochs=4))
    assert best_epoch([], recipe) == 0


def fixed_accuracy(monkeypatch, values):
    """Measure these accuracies, one after the other."""
    measured, left = training.accuracy, iter(values)

    def watched(*arguments):
        found = measured(*arguments)
        return type(found)(next(left), None, found.loss, found.images)

    monkeypatch.setattr(training, "accuracy", watched)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_training_stops_early_and_the_best_weights_are_those_of_their_epoch(monkeypatch, decay):
    recipe = Recipe(epochs=8, batch=16, patience=2, ema_decay=decay, schedule_by="epoch")
    epoch, after = training._Loop.epoch, []

    def watched(self, *arguments):
        entry = epoch(self, *arguments)
        after.append({n: t.detach().clone() for n, t in self.outcome.state_dict().items()})
        return entry

    monkeypatch.setattr(training._Loop, "epoch", watched)
    fixed_accuracy(monkeypatch, [0.3, 0.6, 0.5, 0.6])
    result = cv.train(make_vit(), blobs(), blobs(), recipe)
    assert len(result.history) == 4
    assert result.best_epoch == 2
    assert all(torch.equal(v, after[1][n]) for n, v in result.best.state_dict().items())
    assert all(torch.equal(v, after[3][n]) for n, v in result.vit.state_dict().items())
    assert not result.best.training


def test_a_run_that_stopped_early_comes_back_with_its_best_weights(tmp_path, monkeypatch):
    recipe = Recipe(epochs=8, batch=16, patience=1, ema_decay=0.5)
    fixed_accuracy(monkeypatch, [0.3, 0.6, 0.5])
    first = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    monkeypatch.delattr(training._Loop, "epoch")
    again = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert same_weights(first.best, again.best)
    assert same_weights(first.vit, again.vit)
    assert timeless(first.history) == timeless(again.history)


def test_the_best_weights_are_kept_only_where_asked_for():
    assert cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=1, batch=16)).best is None
    recipe = Recipe(epochs=1, batch=16, keep_best=True)
    result = cv.train(make_vit(), blobs(), blobs(), recipe)
    assert same_weights(result.best, result.vit)
    assert result.best is not result.vit
