"""The trained timm model beside the project keeps its accuracy through load_vit."""

from pathlib import Path

import pytest
import torch

import circuitvit as cv

SHARED = Path(__file__).parents[3] / "shared"
MODEL = SHARED / "models" / "cifar10_timm_vit.safetensors"
PICTURES = SHARED / "data" / "cifar10_test.parquet"
SEEN = cv.Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the home folder."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.skipif(
    not (MODEL.is_file() and PICTURES.is_file()),
    reason="the trained model and CIFAR-10 are not beside this checkout, in ../shared",
)
@pytest.mark.parametrize(
    ("limit", "within"), [(500, 0.04), pytest.param(None, 5e-4, marks=pytest.mark.exhaustive)]
)
@torch.no_grad()
def test_the_trained_timm_model_has_the_accuracy_that_its_readme_states(limit, within):
    """On some images to two standard deviations, on all 10,000 exactly."""
    with pytest.warns(UserWarning, match="doesn't tell its activation"):
        vit = cv.load_vit(MODEL, heads=8, preprocessing=SEEN)
    assert (vit.config.depth, vit.config.heads[0], vit.config.image_size) == (6, 8, 32)
    # Of one file it makes three parts, here all wanted.
    splits = cv.load_splits(str(PICTURES), model=vit, limit=limit)
    parts = (splits.train, splits.validation, splits.test)
    count, right = sum(len(part.labels) for part in parts), 0
    assert count == 10_000 if limit is None else 500 <= count <= 1500
    for part in parts:
        for pictures, labels in zip(part.images.split(500), part.labels.split(500), strict=True):
            right += int((vit(pictures).argmax(dim=1) == labels).sum())
    assert abs(right / count - 0.6581) < within
