"""What writers write, against the hook points."""

import oracles
import pytest
import torch
from random_models import ODD_ADDRESSES, SHAPES, random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.intervene import writer_outputs as module
from circuitvit.intervene.writer_outputs import ablated_values, ablated_writes, writes


def stacked(values, like):
    return torch.stack([value.expand_as(like) for value in values.values()])


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_writers_write_what_is_at_the_hook_points(name):
    vit = random_vit(shape(name), seed=40)
    images = random_images(vit, 3)
    hooked = oracles.write_values(cv.HookedViT(vit), images)
    values = writes(vit, images)[0].values(vit)
    assert torch.allclose(values, stacked(hooked, values[0]), atol=1e-12)
    assert torch.allclose(writes(vit, images)[1], vit(images), atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
@pytest.mark.parametrize("name", SHAPES)
def test_ablated_writers_write_what_the_oracle_says(name, ablation, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 2)
    vit = random_vit(shape(name), seed=41)
    pairs, reference = random_pairs(vit, 3), random_images(vit, 5, seed=9)
    wanted = oracles.ablated_values(vit, pairs, ablation, reference)
    values = ablated_values(vit, ablation, corrupt=pairs.corrupt, reference=reference)
    like = torch.zeros(3, vit.config.tokens, vit.config.width).double()
    assert torch.allclose(values.expand(-1, *like.shape), stacked(wanted, like), atol=1e-12)


@torch.no_grad()
def test_heads_are_held_in_their_own_width():
    vit = random_vit(shape("ragged"), seed=40)
    held = writes(vit, random_images(vit, 2))[0]
    assert [None if z is None else z.shape[1:] for z in held.z] == [(1, 5, 4), None, (3, 5, 3)]
    assert [mlp is None for mlp in held.mlp] == [False, False, True]


@torch.no_grad()
def test_the_mean_of_many_images_in_single_precision_is_summed_in_double():
    vit = random_vit(shape(), seed=40, dtype=torch.float32)
    images = random_images(vit, 200)
    mean = ablated_values(vit, "mean", reference=images)
    wanted = writes(vit, images)[0].values(vit).double().mean(dim=1, keepdim=True)
    assert mean.dtype == torch.float32
    # The imitated processor rounds a whole batch to one side, which a mean doesn't level out.
    tolerance = 1e-5 if ODD_ADDRESSES else 1e-6
    assert torch.allclose(mean.double(), wanted, rtol=tolerance, atol=tolerance)


def bad_calls():
    vit = random_vit(shape())
    nan = random_images(vit, 2) * float("nan")
    return {
        "ablation is 'noise', expected one of": lambda: ablated_writes(vit, "noise"),
        "needs corrupt images": lambda: ablated_writes(vit, "patch"),
        "needs reference images": lambda: ablated_writes(vit, "mean"),
        "reference images have shape": lambda: ablated_writes(
            vit, "mean", reference=torch.zeros(2, 1, 8, 8).double()
        ),
        "reference images": lambda: ablated_writes(vit, "mean", reference=nan),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()
