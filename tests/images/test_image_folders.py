"""Folders of images: links are followed, and the class folders must be clear."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from circuitvit.errors import CircuitError
from circuitvit.images import load_splits
from circuitvit.images.decoding.pixels import Look, decode
from circuitvit.images.image_table import Table
from circuitvit.images.sources.folders import layout_of, walked


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the home folder."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, count=10) -> Path:
    """Pictures that all differ, whatever folder they are in."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(sum(map(ord, str(folder))))
    for place in range(count):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


def counts(source: Path) -> dict[str, int]:
    """How many images each class has in all parts together."""
    splits = load_splits(source)
    labels = [n for part in (splits.train, splits.validation, splits.test) for n in part.labels]
    return {name: labels.count(place) for place, name in enumerate(splits.train.class_names)}


def test_class_folders_and_images_that_are_links_count_under_their_own_names(tmp_path):
    pets, store = tmp_path / "pets", tmp_path / "store"
    write(pets / "cat", 6)
    (pets / "dog").symlink_to(write(store / "set17", 7))
    (pets / "eel").mkdir()
    for file in write(store / "pool", 8).iterdir():
        (pets / "eel" / file.name).symlink_to(file)
    assert counts(pets) == {"cat": 6, "dog": 7, "eel": 8}
    (tmp_path / "linked").symlink_to(pets)
    assert counts(tmp_path / "linked") == {"cat": 6, "dog": 7, "eel": 8}


def test_splits_and_parquet_files_may_be_links_too(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    for split, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            write(whole / f"{split}_images" / name, count)
        (parts / split).symlink_to(whole / f"{split}_images")
    assert len(load_splits(parts).test) == 6
    import datasets

    store, linked = tmp_path / "store", tmp_path / "linked"
    rows = datasets.load_dataset("imagefolder", data_dir=str(whole / "train_images"))["train"]
    store.mkdir()
    rows.to_parquet(str(store / "blob"))
    (linked / "data").mkdir(parents=True)
    (linked / "data" / "train.parquet").symlink_to(store / "blob")
    assert counts(linked) == {"cat": 10, "dog": 10}


def test_links_that_go_round_in_circles_end(tmp_path):
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        write(pets / name)
        (pets / name / "up").symlink_to(pets)
    (pets / "self").symlink_to("self")
    assert counts(pets) == {"cat": 10, "dog": 10}


def test_links_that_lead_nowhere_are_told(tmp_path):
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        write(pets / name)
    (pets / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"^1 images are links that lead nowhere.*cat/gone\.png"):
        assert counts(pets) == {"cat": 10, "dog": 10}


def test_metadata_say_the_classes_whatever_the_folders(tmp_path):
    import json

    nest = tmp_path / "nest"
    rows = []
    for place in ("cat/a", "dog/a"):
        for file in write(nest / place).iterdir():
            kind = "wet" if file.stem in "0123" else "dry"
            rows.append({"file_name": str(file.relative_to(nest)), "label": kind})
    (nest / "metadata.txt").write_text("these are not")
    with pytest.raises(CircuitError, match="folders within folders"):
        load_splits(nest)
    (nest / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match=r"1 files in .* are no pictures.*metadata\.txt"):
        assert counts(nest) == {"dry": 12, "wet": 8}
    (nest / "metadata.txt").unlink()
    (nest / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[:-1])))
    with pytest.warns(UserWarning, match=r"don't name 1 of its 20 pictures \(dog/a/9\.png"):
        assert counts(nest) == {"dry": 11, "wet": 8}


def test_hidden_files_and_folders_are_no_images(tmp_path):
    pets = tmp_path / "pets"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write(pets / split / name)
            (pets / split / name / "._0.png").write_bytes(b"what a Mac leaves")
    write(pets / "train" / "cat" / ".ipynb_checkpoints")
    (pets / "__MACOSX" / "cat").mkdir(parents=True)
    write(pets / ".thumbnails")
    splits = load_splits(pets)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 4, 20]


@pytest.mark.parametrize("above", ["cats_dogs", "a/b", "train", "data/train"])
def test_a_folder_around_the_classes_changes_nothing(tmp_path, above):
    for name in ("cat", "dog"):
        write(tmp_path / "data" / above / name)
    assert counts(tmp_path / "data") == {"cat": 10, "dog": 10}


@pytest.mark.parametrize("above", [".", "unpacked", "unpacked/pets"])
@pytest.mark.parametrize("below", [".", "images"])
def test_splits_are_seen_in_a_folder_around_them(tmp_path, above, below):
    for split, count in (("train", 10), ("val", 4), ("test", 3)):
        for name in ("cat", "dog"):
            write(tmp_path / "data" / above / split / below / name, count)
    splits = load_splits(tmp_path / "data")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 8, 6]


@pytest.mark.parametrize(
    "leaves",
    [
        ["cat/indoor", "cat/outdoor", "dog/indoor", "dog/outdoor"],
        ["cat/monday", "cat/tuesday", "dog/friday"],
        ["train/cat/indoor", "train/dog/indoor", "test/cat/indoor", "test/dog/indoor"],
        ["train/cat", "train/dog", "extra/cat", "extra/dog"],
        ["cat", "dog/puppy"],
        ["cat", "cat/old", "dog"],
    ],
)
def test_classes_in_folders_of_several_folders_are_refused(tmp_path, leaves):
    for leaf in leaves:
        write(tmp_path / "nest" / leaf, 3)
    with pytest.raises(CircuitError) as caught:
        load_splits(tmp_path / "nest")
    said = str(caught.value)
    assert "lie in folders within folders" in said
    assert "Make one folder a class directly in it" in said
    assert leaves[0].removeprefix("train/") in said


def test_images_beside_class_folders_are_named(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / "pets" / name)
    write(tmp_path / "pets", 2)
    with pytest.raises(CircuitError, match=r"2 images beside its folders \(0\.png, 1\.png\)"):
        load_splits(tmp_path / "pets")


def test_a_split_without_images_is_told_and_carved(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / "pets" / "train" / name)
    (tmp_path / "pets" / "test").mkdir()
    with pytest.warns(UserWarning, match=r"no images, so they are left out: pets/test"):
        splits = load_splits(tmp_path / "pets")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 4, 4]


@pytest.mark.timeout(60)
def test_folders_that_are_all_linked_to_one_another_are_read_once(tmp_path):
    names = [f"c{number:02}" for number in range(24)]
    for name in names:
        write(tmp_path / name, 1)
    for name in names:
        for other in names:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    inside = walked(tmp_path)
    assert [file.parent.name for file in inside.files] == names
    assert len(inside.again) == 24 * 23
    with pytest.warns(UserWarning, match=r"^552 links lead to folders that are read already.*more"):
        assert len(layout_of(tmp_path, inside).splits["train"]) == 24


def test_what_a_link_leads_to_keeps_its_own_name_where_it_lies_in_the_folder(tmp_path):
    pets = tmp_path / "pets"
    write(pets / "cat", 6)
    write(pets / "dog", 6)
    (pets / "ant").symlink_to(pets / "dog")
    with pytest.warns(UserWarning, match=r"^1 links lead to folders .* read already.*pets/ant"):
        assert counts(pets) == {"cat": 6, "dog": 6}


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_are_never_opened(tmp_path):
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        write(pets / name)
    for name in ("cat/x.png", "cat/y", "metadata.csv", "data.parquet"):
        os.mkfifo(pets / name)
    with pytest.warns(UserWarning, match=r"^1 images are no files but pipes.*cat/x\.png"):
        assert counts(pets) == {"cat": 10, "dog": 10}
    with pytest.raises(CircuitError, match="there is nothing at"):
        load_splits(pets / "data.parquet")
    raws = [{"path": str(pets / "cat/x.png"), "bytes": None}]
    table = Table(np.zeros(1, np.int64), ("a",), {"train": (1, lambda places: raws)})
    found = decode(table, np.arange(1), Look(8, 8, 3, "bicubic", "shortest"))
    assert found.skipped[0].endswith("cat/x.png): there is no such file")


def test_metadata_may_name_no_pictures_outside_their_folder(tmp_path):
    write(tmp_path / "other")
    nest = write(tmp_path / "nest")
    for name in ("../other/1.png", str(tmp_path / "other" / "1.png"), "1.png\0"):
        rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in range(9)]
        rows.append({"file_name": name, "label": "a"})
        (nest / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(CircuitError, match="nest can't be read"):
            load_splits(nest)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("a\0b", "characters that no path has"),
        ("a\ud800b", "characters that no path has"),
        ("x" * 5000, "longer than a path may be"),
        ("~nobody-of-this-name/x", "home folder is not known"),
    ],
)
def test_texts_that_are_no_paths_are_told(place, reason):
    for given in (place, Path(place), f"{place}.npz"):
        with pytest.raises(CircuitError, match=f"source is .*{reason}"):
            load_splits(given)
    with pytest.raises(CircuitError, match=f"cache is .*{reason}"):
        load_splits("digits", cache=place)


def test_a_parquet_file_that_claims_more_rows_than_bytes_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    same = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10**6), pyarrow.array([b"x"]))
    parquet.write_table(pyarrow.table({"image": same, "label": same}), tmp_path / "a.parquet")
    with pytest.raises(CircuitError, match=r"a\.parquet claims 1000000 rows"):
        load_splits(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20] + b"\xff" * 12 + whole[-8:])
    with pytest.raises(CircuitError, match=r"a\.parquet can't be read"):
        load_splits(tmp_path / "a.parquet")
