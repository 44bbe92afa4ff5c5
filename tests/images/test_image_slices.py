"""Slices of splits: those of `datasets`, and never an image in two parts."""

import numpy as np
import pytest

from circuitvit.errors import CircuitError
from circuitvit.images import load_splits
from circuitvit.images.sources.split_expressions import own_parts

SIZES = {"test": 40, "train": 100, "extra": 7}  # in this order, one after another


@pytest.mark.parametrize(
    "expression",
    ["train", "train[:2%]", "train[10:20]", "train[-5:]", "test[:10%]+extra", "train[33%:66%]",
     "train[:1]+train[50:]", "extra[1:3]", "train[:50%](pct1_dropremainder)"],
)  # fmt: skip
def test_slices_are_those_of_datasets(tmp_path, expression):
    import datasets

    rows = dict(zip(SIZES, np.split(np.arange(147), [40, 140]), strict=True))
    for name, places in rows.items():
        datasets.Dataset.from_dict({"place": places}).to_parquet(str(tmp_path / f"{name}.parquet"))
    files = {name: str(tmp_path / f"{name}.parquet") for name in SIZES}
    theirs = datasets.load_dataset(
        "parquet", data_files=files, split=expression, cache_dir=str(tmp_path / "cache")
    )
    assert own_parts(SIZES, expression, "here")["train"].tolist() == list(theirs["place"])


def test_each_part_may_have_its_slice_and_no_other_is_made():
    parts = own_parts(SIZES, {"train": "train[:10]", "validation": "train[10:]"}, "here")
    assert {name: len(places) for name, places in parts.items()} == {"train": 10, "validation": 90}
    assert parts["train"].tolist() == list(range(40, 50))


def test_splits_are_found_by_what_they_are_called_here_too():
    sizes = {"train": 5, "valid": 3}
    assert own_parts(sizes, {"train": "train", "test": "validation"}, "x")["test"].tolist() == [
        5,
        6,
        7,
    ]
    assert own_parts({"only": 4}, "train[:2]", "x")["train"].tolist() == [0, 1]
    assert own_parts({"only": 4}, "only[2:]", "x")["train"].tolist() == [2, 3]


def test_a_split_called_exactly_so_is_preferred_to_one_like_it():
    sizes = {"my_train": 2, "train": 3, "test": 1}
    assert own_parts(sizes, None, "x")["train"].tolist() == [2, 3, 4]
    assert own_parts(sizes, "train", "x")["train"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", r"'val': Unknown split \"val\"\. There are.*'test': 40, 'train': 100, 'extra': 7"),
        ("train[:2.5%]", r"'train\[:2\.5%\]': Unrecognized"),
        ("train[", r"Unrecognized"),
        ("", r"Unrecognized"),
        ("train[200%:]", r"train\[200%:\]"),
        ("train[5:5]", r"holds no images"),
        ("train[60:10]", r"holds no images"),
        ("train+train[:1]", r"some images twice"),
        ({"test": "test"}, r"no expression for 'train'"),
        ({"train": "train", "val": "test"}, r"'val' is no part, expected \('train', 'validation'"),
        ({"train": "train[:50]", "test": "train[40:]"}, r"train \('train\[:50\]'\) and test .*share 10"),
        ({"train": "tran", "test": "tets"}, r"'tran'.*'tets'"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_made_are_told_together_with_what_there_is(split, message):
    with pytest.raises(CircuitError, match=message):
        own_parts(SIZES, split, "here")


def test_all_parts_are_carved_from_a_slice():
    splits = load_splits("digits", split="train[:50%]")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [538, 180, 180]
    from sklearn.datasets import load_digits

    first = {row.tobytes() for row in (load_digits().data[:898] / 8 - 1).astype(np.float32)}
    for part in (splits.train, splits.validation, splits.test):
        assert {row.numpy().tobytes() for row in part.images} <= first


def test_given_validation_images_stay_so_and_test_images_are_carved():
    splits = load_splits("digits", split={"train": "train[:1000]", "validation": "train[1000:]"})
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [800, 797, 200]


def test_a_slice_that_leaves_classes_out_is_warned_of(tmp_path):
    from PIL import Image

    for index in range(20):
        path = tmp_path / "pets" / ("cat", "dog")[index // 10] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index).save(path)
    with pytest.warns(UserWarning, match=r"no training images of 1 of 2 classes \(dog\)"):
        load_splits(str(tmp_path / "pets"), split="train[:50%]")
    load_splits(str(tmp_path / "pets"), split="train[25%:75%]")
