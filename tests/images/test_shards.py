"""Parquet files named split by split, and folders that hold several data sets."""

import re

import numpy as np
import pytest
from image_files import DATA, as_bytes, each, picture, write_folder, write_parquet

from circuitvit.errors import CircuitError
from circuitvit.images import load_splits


def test_parquet_files_can_be_named_split_by_split(tmp_path):
    train = write_parquet(tmp_path / "a.parquet", [0, 1] * 10)
    other = write_parquet(tmp_path / "b.parquet", [1, 0], seed=50)
    sizes = {
        "train alone": ({"train": str(train)}, [12, 4, 4]),
        "test": ({"train": train, "test": other}, [16, 4, 2]),
        "all": ({"train": train, "validation": other, "test": str(other)}, [20, 2, 2]),
        "validation alone": ({"train": train, "valid": other}, [16, 4, 2]),
    }
    for name, (source, expected) in sizes.items():
        assert [len(part) for part in each(load_splits(source)).values()] == expected, name
    splits = load_splits({"train": train, "test": other})
    assert splits.test.labels.tolist() == [1, 0]
    assert as_bytes(splits.test.images[1]).tobytes() == np.asarray(picture(51)).tobytes()
    drawn = load_splits({"train": train, "test": other}, streaming=True, limit=5)
    assert [len(part) for part in each(drawn).values()] == [4, 1, 2]
    write_parquet(tmp_path / "more" / "c.parquet", [0, 1] * 5)
    write_parquet(tmp_path / "more" / "d.parquet", [0, 1] * 5)
    for place in (tmp_path / "more", f"{tmp_path}/more/*.parquet"):
        splits = load_splits({"train": place, "test": other})
        assert [len(part) for part in each(splits).values()] == [16, 4, 2]


def test_what_is_no_parquet_file_in_a_mapping_is_told(tmp_path):
    train = write_parquet(tmp_path / "a.parquet", [0, 1] * 10)
    pictures = write_folder(tmp_path / "pictures", count=2)
    for place, told in (
        (pictures, "there is nothing there"),
        (tmp_path / "none.parquet", "there is nothing there"),
        (pictures / "cat" / "0.png", "there is no parquet file"),
    ):
        with pytest.raises(
            CircuitError, match=f"the source of 'test' is {place}, and {told}. Give"
        ):
            load_splits({"train": train, "test": place})
    with pytest.raises(CircuitError, match=r"source\['test'\] is .*holds characters"):
        load_splits({"train": train, "test": "a\0b"})


def test_no_file_of_a_mapping_is_left_out_without_a_word(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 10)
    other = write_parquet(tmp_path / "b.parquet", [0, 1])
    for source, told in (
        ({"train": path, "foo": other}, "'foo' is no split, expected 'train', 'validation' or 't"),
        ({"train": path, "Train": other}, "'train' and 'Train' are the same split"),
        (
            {"train": path, "valid": other, "validation": other},
            "'valid' and 'validation' are the same split",
        ),
        ({"": path}, "'' is no split"),
        ({"a/b": path}, "'a/b' is no split"),
        ({"train ": path, 3: other}, "'train ' is no split, .*; 3 is no split"),
        ({"train": path, "test": 3}, "the source of 'test' is 3, expected a path"),
        ({"train": path, "test": None}, "the source of 'test' is None, expected a path"),
    ):
        with pytest.raises(CircuitError, match=told):
            load_splits(source)
    assert len(load_splits({"TRAIN": path, "Test": other}).test) == 2


def test_a_folder_of_several_data_sets_names_them_and_says_how_to_choose(tmp_path):
    folder = tmp_path / "data"
    write_parquet(folder / "cifar10_train_20k.parquet", [0, 1] * 10, image="img")
    write_parquet(folder / "cifar10_test.parquet", [0, 1], image="img")
    write_parquet(folder / "animals" / "train-0-of-1.parquet", ["cat", "dog"] * 10)
    with pytest.raises(CircuitError) as caught:
        load_splits(folder)
    assert str(caught.value) == (
        f"{folder} holds 2 data sets in parquet: 'animals', 'cifar10'. Choose one: give the folder "
        f"{folder}/animals."
    )
    (folder / "animals" / "train-0-of-1.parquet").rename(folder / "zebras_train.parquet")
    with pytest.raises(CircuitError, match=r"'cifar10', 'zebras'. Choose one: give the ") as caught:
        load_splits(folder)
    pattern = re.search("the pattern '(.*)'", str(caught.value))[1]
    assert pattern == f"{folder}/cifar10_*.parquet"
    assert [len(part) for part in each(load_splits(pattern)).values()] == [16, 4, 2]


def test_data_sets_of_the_same_columns_are_told_apart_by_their_splits(tmp_path):
    for name in ("one", "two"):
        write_parquet(tmp_path / f"{name}_train.parquet", [0, 1] * 10)
        write_parquet(tmp_path / f"{name}_test.parquet", [0, 1])
    with pytest.raises(CircuitError, match="holds 2 data sets in parquet: 'one', 'two'"):
        load_splits(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}_test.parquet").unlink()
    assert len(load_splits(tmp_path).train) == 24, "parts of one, by any names"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no parquet files in {DATA}")
def test_the_folder_of_the_experiments_is_told_to_hold_two_data_sets():
    with pytest.raises(
        CircuitError, match="2 data sets in parquet: 'cifar10', 'tiny_imagenet_animals'"
    ):
        load_splits(DATA)
