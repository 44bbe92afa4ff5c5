"""Decoded pixels kept in a folder: never stale, never wrong, made again where damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import load_splits


def folder_of(root: Path, count=8) -> Path:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(count):
            draw = np.random.default_rng([i, label == "cat"])
            Image.fromarray(draw.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(
                root / label / f"{i}.bmp"
            )
    return root


@pytest.fixture
def pets(tmp_path, monkeypatch) -> Path:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return folder_of(tmp_path / "pets")


def images_of(splits) -> torch.Tensor:
    return torch.cat([splits.train.images, splits.validation.images, splits.test.images])


def spoil(folder: Path) -> None:
    """Overwrite all pictures, so that only their size and date are as they were."""
    for file in folder.rglob("*.bmp"):
        before = file.stat()
        file.write_bytes(b"x" * before.st_size)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_loading_decodes_nothing(pets, tmp_path):
    options = dict(image_size=8, cache=tmp_path / "pixels")
    first = load_splits(str(pets), **options)
    assert torch.equal(images_of(first), images_of(load_splits(str(pets), image_size=8)))
    spoil(pets)
    second = load_splits(pets, **options)
    assert torch.equal(images_of(second), images_of(first))
    assert second.train.labels.tolist() == first.train.labels.tolist()
    other = load_splits(
        pets, preprocessing=cv.Preprocessing(0, 1), **options
    )  # pixels are the same
    assert (images_of(other) * 2 - 1 - images_of(first)).abs().max() < 1e-6


@pytest.mark.parametrize("change", [
    {"image_size": 7}, {"seed": 1}, {"limit": 3}, {"channels": 1},
    {"preprocessing": cv.Preprocessing(interpolation="bilinear")},
    {"preprocessing": cv.Preprocessing(crop=0.5)},
    {"preprocessing": cv.Preprocessing(resize="squash")},
])  # fmt: skip
def test_what_changes_the_pixels_is_decoded_anew(pets, tmp_path, change):
    options = dict(image_size=8, cache=tmp_path / "pixels")
    load_splits(str(pets), **options)
    found = images_of(load_splits(str(pets), **(options | change)))
    expected = images_of(load_splits(str(pets), **({"image_size": 8} | change)))
    assert torch.equal(found, expected)


def test_pictures_that_changed_are_decoded_anew(pets, tmp_path):
    before = load_splits(str(pets), image_size=8, cache=tmp_path / "pixels")
    for file in pets.rglob("*.bmp"):
        Image.open(file).rotate(180).save(file)
    after = load_splits(str(pets), image_size=8, cache=tmp_path / "pixels")
    assert torch.equal(images_of(after), images_of(load_splits(str(pets), image_size=8)))
    assert not torch.equal(images_of(after), images_of(before))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_cache_is_made_again(pets, tmp_path, damage):
    from safetensors.torch import save_file

    options = dict(image_size=8, cache=tmp_path / "pixels")
    expected = images_of(load_splits(str(pets), **options))
    for file in (tmp_path / "pixels").iterdir():
        data = bytearray(file.read_bytes())
        data[-5] ^= 255
        if damage == "other":
            save_file({"pixels": torch.zeros(3)}, file)
        else:
            file.write_bytes({"cut": data[:-50], "flip": data, "empty": b""}[damage])
    damaged = {file: file.read_bytes() for file in (tmp_path / "pixels").iterdir()}
    assert torch.equal(images_of(load_splits(str(pets), **options)), expected)
    assert all(file.read_bytes() != data for file, data in damaged.items())
    spoil(pets)
    assert torch.equal(images_of(load_splits(str(pets), **options)), expected)


def test_what_could_not_be_read_is_remembered_too(pets, tmp_path):
    (pets / "cat" / "2.bmp").write_bytes(b"x")
    options = dict(image_size=8, cache=tmp_path / "pixels")
    with pytest.warns(UserWarning, match=r"1 of 16 images"):
        first = load_splits(str(pets), **options)
    with pytest.warns(UserWarning, match=r"1 of 16 images"):
        assert load_splits(str(pets), **options).skipped == first.skipped
    with pytest.raises(CircuitError, match=r"1 of 16 images.*2\.bmp"):
        load_splits(str(pets), strict=True, **options)


def test_a_cache_that_cannot_be_written_is_said(pets, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CircuitError, match=r"cannot write .*taken"):
        load_splits(str(pets), image_size=8, cache=tmp_path / "taken")
