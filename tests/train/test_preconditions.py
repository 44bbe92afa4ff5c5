"""What a training needs of recipe and machine, and what it says while it runs."""

import math
import re

import pytest
import torch
from small_training import blobs, make_vit

import circuitvit as cv
from circuitvit.train import Recipe, training


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without a GPU")
def test_fp16_on_a_cpu_is_refused_with_the_reason():
    recipe = Recipe(epochs=1, batch=16, mixed_precision="fp16")
    with pytest.raises(cv.CircuitError, match=r'fp16 needs a GPU.*underflow.*"bf16"'):
        cv.train(make_vit(), blobs(), blobs(), recipe)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fp16_on_a_gpu_trains_and_is_resumed(tmp_path):
    from dataclasses import replace

    images = blobs()
    images = replace(images, images=images.images.float())
    recipe = Recipe(epochs=30, batch=16, learning_rate=1e-2, mixed_precision="fp16")
    vit = make_vit(width=16).float()
    result = cv.train(vit, images, images, recipe, folder=tmp_path)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert cv.train(vit, images, images, recipe, folder=tmp_path).history == result.history


def test_every_reason_is_named_at_once():
    recipe = Recipe(epochs=1, batch=64, accumulate=65, rand_augment=1)
    with pytest.raises(cv.CircuitError) as caught:
        cv.train(make_vit(), blobs(), blobs(), recipe, teacher=make_vit(classes=3))
    for words in ("larger than the 48", "65 micro-batches", "RandAugment", "the teacher returns"):
        assert words in str(caught.value)


def test_about_twenty_lines_an_epoch_are_logged_and_none_beside_a_bar(capfd):
    lines = []
    recipe = Recipe(epochs=2, batch=1, learning_rate=1e-4)
    history = cv.train(make_vit(), blobs(), blobs(), recipe, log=lines.append).history
    assert len(lines) == 2 * 20
    steps = [re.match(r"epoch (\d)/2, step (\d+)/48: loss \d", line) for line in lines]
    assert [m is None for m in steps] == ([False] * 19 + [True]) * 2
    assert lines[-1].startswith(f"epoch 2/2: loss {history[1]['loss']:.4f}, validation accuracy")
    lines.clear()
    few = Recipe(epochs=2, batch=16)  # three steps an epoch: a line after each
    cv.train(make_vit(), blobs(), blobs(), few, log=lines.append)
    assert len(lines) == 6
    lines.clear()
    cv.train(make_vit(), blobs(), blobs(), few, log=lines.append, progress=True)
    assert lines == []
    capfd.readouterr()


@pytest.mark.parametrize("told", [True, False])
def test_with_a_log_a_loss_that_is_not_finite_ends_the_training_within_the_epoch(told, monkeypatch):
    """Of 48 steps the 19th fails; the next line comes after the 20th."""
    calls, training_loss = [], training.training_loss

    def poisoned(*args):
        calls.append(None)
        return training_loss(*args) * (math.inf if len(calls) == 19 else 1)

    monkeypatch.setattr(training, "training_loss", poisoned)
    lines = []
    with pytest.raises(cv.CircuitError, match=r"loss became NaN.* at step 19 of 48 in epoch 1\."):
        cv.train(
            make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=1, learning_rate=1e-4),
            log=lines.append if told else None,
        )  # fmt: skip
    assert len(calls) == (20 if told else 48)
    assert len(lines) == (7 if told else 0)
