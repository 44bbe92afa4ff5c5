"""The caller's modes of torch: what is loaded inside them is as it is outside."""

import pytest
import torch
from foreign_models import a_timm, a_torchvision, a_transformers
from random_models import random_images, random_vit, shape

import circuitvit as cv

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

MODES = {
    "inference mode": lambda: torch.inference_mode(),
    "gradients off": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


def check_ordinary(vit):
    assert all(p.requires_grad and p.is_leaf and not p.is_inference() for p in vit.parameters())
    assert vit.positions.device.type == "cpu"
    vit(random_images(vit, 2)).sum().backward()
    assert vit.positions.grad is not None


@pytest.mark.parametrize("mode", MODES)
def test_what_is_loaded_in_a_mode_can_be_trained_later(mode, tmp_path):  # cases 14 and 18
    vit, timms = random_vit(shape(), dtype=torch.float32), a_timm().float()
    vit.save_pretrained(tmp_path / "ours")
    torch.save(timms.state_dict(), tmp_path / "bare.pth")
    a_transformers("ViT").float().save_pretrained(tmp_path / "theirs")
    frozen = random_vit(shape()).requires_grad_(False)
    sources = [vit, timms, a_torchvision().float(), a_transformers("ViT").float(), frozen,
               tmp_path / "ours", tmp_path / "ours" / "model.safetensors", tmp_path / "theirs"]  # fmt: skip
    with MODES[mode]():
        loaded = [cv.load_vit(source) for source in sources]
        loaded.append(cv.load_vit(timms, checkpoint=tmp_path / "bare.pth"))
        loaded.append(cv.load_vit(vit, image_size=8))
        loaded.append(cv.ViT.from_pretrained(tmp_path / "ours"))
    for model in loaded:
        check_ordinary(model)


def test_models_that_were_built_in_inference_mode_can_be_loaded_and_trained():
    with torch.inference_mode():
        models = [a_timm(), random_vit(shape())]
    for model in models:
        check_ordinary(cv.load_vit(model))


@pytest.mark.parametrize("mode", list(MODES)[:3])
def test_the_ways_back_are_not_touched_by_modes(mode, tmp_path):
    vit = random_vit(shape(), dtype=torch.float32)
    with MODES[mode]():
        modules = [cv.to_timm(vit), cv.to_transformers(vit)]
        cv.export(vit, tmp_path / "folder", to="timm")
    for module in modules:
        assert all(p.requires_grad and not p.is_inference() for p in module.parameters())
