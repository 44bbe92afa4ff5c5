"""A new head on an old body."""

import pytest
import torch
from models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.train import with_new_head


@pytest.mark.parametrize("name", ["uniform", "class and mean"])
def test_only_the_head_is_new_and_the_model_is_left_alone(name):
    vit = random_vit(shape(name))
    vit.preprocessing = cv.Preprocessing(mean=(0.3,), class_names=tuple("abcd"))
    before, images = vit.fingerprint(), random_images(vit, 3)
    new = with_new_head(vit, 7, seed=1)
    assert new(images).shape == (3, 7)
    own = vit.state_dict()
    for key, value in new.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, own[key])
        assert value.dtype == own[key].dtype
    assert new.preprocessing == cv.Preprocessing(mean=(0.3,))
    assert not new.training
    drawn = new.head.weight
    assert 0.01 < drawn.std() < 0.03
    assert not new.head.bias.any()
    with torch.no_grad():
        new.positions.zero_()
    assert vit.fingerprint() == before
    assert torch.equal(with_new_head(vit, 7, seed=1).head.weight, drawn)
    assert not torch.equal(with_new_head(vit, 7, seed=2).head.weight, drawn)
