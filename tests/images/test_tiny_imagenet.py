"""The folder `tiny-imagenet-200` as its makers packed it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from circuitvit.errors import CircuitError
from circuitvit.images import ANIMALS, load_splits

WNIDS = ("n02123045", "n01443537", "n04146614")  # in no order, as in the makers' wnids.txt


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n_0.JPEG\t0\t0\t63\t63\n")
        for i in range(10):  # png bytes, so that pixels come back to the byte
            picture(100 * label + i).save(
                root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", "png"
            )
    for part in ("val", "test"):
        (root / part / "images").mkdir(parents=True)
        for i in range(6):
            picture(900 + i).save(root / part / "images" / f"{part}_{i}.JPEG", "png")
    lines = [f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t32\t44\t62\n" for i in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n02123045\ttabby, tabby cat\n")
    return root


def test_validation_images_become_the_test_images_with_their_annotated_classes(folder):
    splits = load_splits(folder)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [24, 6, 6]
    assert splits.train.class_names == tuple(sorted(WNIDS))
    for i, (image, label) in enumerate(zip(splits.test.images, splits.test.labels, strict=True)):
        expected = (
            torch.from_numpy(np.asarray(picture(900 + i)).copy()).permute(2, 0, 1) / 255 * 2 - 1
        )
        assert (image - expected).abs().max() < 1e-6
        assert splits.test.class_names[label] == WNIDS[i % 3]


def test_slices_and_classes_work_on_it_too(folder):
    splits = load_splits(
        str(folder),
        split={"train": "train", "test": "validation[:3]"},
        classes=["n04146614", "n01443537"],
    )
    assert splits.test.labels.tolist() == [1, 0]
    assert splits.train.labels.bincount().tolist() == [8, 8]


def test_the_animals_are_told_if_some_are_not_there(folder):
    with pytest.raises(CircuitError, match=rf"'{ANIMALS[1].wnid}'.*and 46 more are not there"):
        load_splits(folder, classes="animals")


def test_a_missing_validation_image_is_skipped_and_a_wrong_line_refused(folder):
    (folder / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.warns(UserWarning, match=r"1 of 36 images.*validation image 2 \(.*val_2\.JPEG\)"):
        assert len(load_splits(folder).test) == 5
    with open(folder / "val" / "val_annotations.txt", "a") as file:
        file.write("val_9.JPEG\tn09999999\t0\n")
    with pytest.raises(CircuitError, match=r"1 lines .*7 \('val_9\.JPEG"):
        load_splits(folder)


def test_it_cannot_be_streamed(folder):
    with pytest.raises(CircuitError, match=r"can't be streamed"):
        load_splits(folder, streaming=True, limit=3)
