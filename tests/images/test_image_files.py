"""Images from folders and parquet files."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_files import DATA, as_bytes, each, picture, write_folder, write_parquet
from PIL import Image

from circuitvit.errors import CircuitError
from circuitvit.images import load_splits

# Folders


def test_a_folder_of_class_folders_is_read_to_the_byte(tmp_path):
    splits = load_splits(str(write_folder(tmp_path / "pets")))
    assert [len(part) for part in each(splits).values()] == [12, 4, 4]
    assert splits.train.class_names == ("cat", "dog")
    originals = {
        np.asarray(picture(1000 * label + i)).tobytes(): label
        for label in (0, 1)
        for i in range(10)
    }
    found = {}
    for part in each(splits).values():
        for image, label in zip(part.images, part.labels, strict=True):
            found[as_bytes(image).tobytes()] = int(label)
    assert found == originals


def test_a_folder_keeps_its_own_test_images_and_validation_is_carved(tmp_path):
    write_folder(tmp_path / "pets" / "train")
    write_folder(tmp_path / "pets" / "test", count=3)
    splits = load_splits(str(tmp_path / "pets"))
    assert [len(part) for part in each(splits).values()] == [16, 4, 6]
    own = {np.asarray(picture(1000 * label + i)).tobytes() for label in (0, 1) for i in range(3)}
    assert {as_bytes(image).tobytes() for image in splits.test.images} == own


def test_validation_images_become_the_test_images_where_there_are_no_others(tmp_path):
    write_folder(tmp_path / "pets" / "train")
    write_folder(tmp_path / "pets" / "val", count=3)
    splits = load_splits(str(tmp_path / "pets"), validation=0.1)
    assert [len(part) for part in each(splits).values()] == [18, 2, 6]


def test_a_class_may_be_called_train(tmp_path):
    splits = load_splits(str(write_folder(tmp_path / "vehicles", ("bus", "train"))))
    assert splits.train.class_names == ("bus", "train")
    assert sum(len(part) for part in each(splits).values()) == 20


@pytest.mark.parametrize(
    ("mode", "channels", "expected"), [("L", None, 3), ("RGBA", None, 3), ("RGB", 1, 1)]
)
def test_images_are_brought_to_the_same_channels(tmp_path, mode, channels, expected):
    folder = write_folder(tmp_path / "pets", mode=mode)
    picture(7, mode="RGB").convert("P").save(folder / "cat" / "0.png", transparency=b"\0\1")
    part = load_splits(str(folder), channels=channels).train
    assert part.images.shape == (12, expected, 8, 8)
    if mode == "L":
        grey = [image for image in part.images if torch.equal(image[0], image[1])]
        assert len(grey) >= 11


def test_images_of_several_sizes_are_resized_and_cropped_to_the_middle(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for file in (folder / "cat").iterdir():
        wide = Image.new("RGB", (20, 10), "black")
        wide.paste("white", (3, 0, 17, 10))  # the middle square and what a filter sees of its sides
        wide.save(file)
    with pytest.raises(CircuitError, match=r"8×8, 10×20 pixels.*Give image_size"):
        load_splits(str(folder))
    part = load_splits(str(folder), image_size=5).train
    assert part.images.shape == (12, 3, 5, 5)
    assert torch.all(part.images[part.labels == 0] == 1)


def test_images_that_are_not_square_need_a_size(tmp_path):
    folder = str(write_folder(tmp_path / "pets", size=(8, 6)))
    with pytest.raises(CircuitError, match=r"6×8 pixels.*Give image_size"):
        load_splits(folder)
    assert load_splits(folder, image_size=8).test.images.shape[2:] == (8, 8)


def test_sixteen_bit_images_are_left_out_rather_than_clipped_unless_their_range_is_said(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for file in (folder / "cat").iterdir():
        Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(file)
    with pytest.raises(
        CircuitError, match=r"^10 of 20 images can't.*cat/\d\.png\): its pixels \(mode"
    ):
        load_splits(str(folder), strict=True)
    with pytest.warns(
        UserWarning, match=r"I;16\) go from 40000 .*pixel_range=.*No image is left of .* 'cat'"
    ):
        assert set(load_splits(str(folder)).train.labels.tolist()) == {1}
    splits = load_splits(str(folder), pixel_range=(0, 65535))
    grey = splits.train.images[splits.train.labels == 0]
    assert torch.allclose(grey, torch.full_like(grey, 40_000 / 65_535 * 2 - 1), atol=1e-6)
    plain = load_splits(str(write_folder(tmp_path / "same"))).train
    dogs, theirs = (part.images[part.labels == 1] for part in (plain, splits.train))
    assert torch.allclose(dogs, theirs, atol=1e-6)  # the others are as they are without a range


def test_broken_images_are_left_out_with_one_warning_or_refused_if_strict(tmp_path):
    folder = write_folder(tmp_path / "pets")
    whole = load_splits(str(folder))
    (folder / "dog" / "3.png").write_bytes(b"not a picture")
    (folder / "cat" / "5.png").write_bytes((folder / "cat" / "5.png").read_bytes()[:-60])
    (folder / "cat" / "0.png").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"^3 of 20 images can't be read: .*; .*; .*left out"
    ) as said:
        splits = load_splits(str(folder))
    assert len(said) == 1
    assert sum(len(part) for part in each(splits).values()) == 17
    assert {line.split("(")[1].split(")")[0] for line in splits.skipped} == {
        str(folder / name) for name in ("dog/3.png", "cat/5.png", "cat/0.png")
    }
    assert all(re.match(r"train image (0|5|13) \(.*png\): \w+", line) for line in splits.skipped)
    for name, part in each(whole).items():  # the others are where they were
        rows = {
            (row.numpy().tobytes(), int(c)) for row, c in zip(part.images, part.labels, strict=True)
        }
        left = each(splits)[name]
        assert {
            (row.numpy().tobytes(), int(c)) for row, c in zip(left.images, left.labels, strict=True)
        } <= rows
    with pytest.raises(CircuitError, match=r"3 of 20 images can't be read: .*png.*Replace them"):
        load_splits(str(folder), strict=True)


def test_where_no_image_can_be_read_there_is_an_error(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for file in folder.rglob("*.png"):
        file.write_bytes(b"not a picture")
    with pytest.raises(
        CircuitError, match=r"20 of 20 images.*None are left for train, validation, test"
    ):
        load_splits(str(folder))


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(CircuitError, match=r"holds no images.*one folder a class"):
        load_splits(str(tmp_path / "empty"))


def test_class_folders_without_images_are_told(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "eel").mkdir()
    (folder / "fox").mkdir()
    (folder / "fox" / "notes.txt").write_text("nothing")
    with pytest.warns(
        UserWarning,
        match=r"no images, so they are left out: pets/eel, pets/fox.*no pictures.*notes",
    ):
        assert load_splits(folder).train.class_names == ("cat", "dog")


def test_images_without_class_folders_are_refused(tmp_path):
    write_folder(tmp_path / "flat", ("cat",))
    with pytest.raises(CircuitError, match=r"lie directly in .*cat \(0\.png.*one folder a class"):
        load_splits(str(tmp_path / "flat" / "cat"))
    with pytest.warns(UserWarning, match=r"all images of .*flat are of one class, 'cat'"):
        assert load_splits(str(tmp_path / "flat")).train.class_names == ("cat",)
    write_folder(tmp_path / "parts", ("train", "test"))
    with pytest.raises(CircuitError, match="beside one another"):
        load_splits(str(tmp_path / "parts"))


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(CircuitError, match=r"too few images.*validation"):
        load_splits(str(write_folder(tmp_path / "pets", count=1)))


# Parquet


def test_parquet_names_say_the_split_and_text_labels_become_classes(tmp_path):
    write_parquet(tmp_path / "set" / "animals_train.parquet", ["cat", "ant", "dog"] * 10)
    write_parquet(tmp_path / "set" / "animals_valid.parquet", ["dog", "cat"], seed=50)
    write_parquet(tmp_path / "set" / "animals_test.parquet", ["ant"], seed=60)
    splits = load_splits(str(tmp_path / "set"))
    assert [len(part) for part in each(splits).values()] == [30, 2, 1]
    assert splits.train.class_names == ("ant", "cat", "dog")
    assert splits.validation.labels.tolist() == [2, 1]
    assert splits.test.labels.tolist() == [0]
    assert as_bytes(splits.validation.images[1]).tobytes() == np.asarray(picture(51)).tobytes()


def test_one_parquet_file_is_split_whatever_its_name(tmp_path):
    file = write_parquet(tmp_path / "only_test.parquet", [5, 7] * 10, image="picture", label="kind")
    splits = load_splits(str(file))
    assert [len(part) for part in each(splits).values()] == [12, 4, 4]
    assert splits.train.class_names == ("5", "7")
    originals = {np.asarray(picture(i)).tobytes(): i % 2 for i in range(20)}
    for image, label in zip(splits.test.images, splits.test.labels, strict=True):
        assert originals[as_bytes(image).tobytes()] == label


def test_a_pattern_picks_parquet_files(tmp_path):
    write_parquet(tmp_path / "a_train.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "a_test.parquet", [0, 1])
    write_parquet(tmp_path / "b_train.parquet", ["x", "y"], label="other")
    splits = load_splits(str(tmp_path / "a_*.parquet"))
    assert [len(part) for part in each(splits).values()] == [16, 4, 2]


def test_typed_columns_are_found_whatever_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["tea", "coffee"]),
        }
    )
    rows = {"id": list(range(10)), "photo": [picture(i) for i in range(10)], "kind": [0, 1] * 5}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    assert load_splits(str(tmp_path / "x.parquet")).train.class_names == ("tea", "coffee")


def test_columns_that_are_not_clear_are_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [0.5] * 10)
    with pytest.raises(CircuitError, match=r"column 'label' holds 0\.5, which is no class"):
        load_splits(str(file))
    file = write_parquet(tmp_path / "y.parquet", [1] * 10, label="a")
    table = pq.read_table(file)
    pq.write_table(table.append_column("b", table["a"]), file)
    with pytest.raises(CircuitError, match=r"labels is not clear.*\['image', 'a', 'b'\]"):
        load_splits(str(file))


def test_missing_labels_are_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", ["a", None] * 5)
    with pytest.raises(CircuitError, match="5 images have no label .*in train of.*with split"):
        load_splits(str(file))


def test_hidden_labels_are_refused_until_other_images_are_taken(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", [3, 7, 9] * 10)
    write_parquet(tmp_path / "set" / "test.parquet", [-1] * 6, seed=50)
    with pytest.raises(CircuitError, match=r"6 images have no label .*in test of .*with split"):
        load_splits(str(tmp_path / "set"))
    splits = load_splits(str(tmp_path / "set"), split="train")
    assert splits.train.class_names == ("3", "7", "9")
    assert splits.test.labels.bincount().tolist() == [2, 2, 2]


def test_what_datasets_has_loaded_is_taken_as_it_is(tmp_path):
    import datasets

    file = write_parquet(tmp_path / "x.parquet", ["a", "b"] * 10)
    loaded = datasets.Dataset.from_parquet(str(file))
    expected = load_splits(str(file))
    assert load_splits(loaded).test.fingerprint() == expected.test.fingerprint()
    both = datasets.DatasetDict(train=loaded.select(range(15)), test=loaded.select(range(15, 20)))
    assert load_splits(both, split={"train": "train", "test": "test"}).test.labels.tolist() == [
        1,
        0,
        1,
        0,
        1,
    ]
    stream = loaded.to_iterable_dataset()
    assert len(load_splits(stream, streaming=True, limit=10).train) == 6
    with pytest.raises(CircuitError, match=r"is a stream.*streaming=True"):
        load_splits(stream)
    for wrong in ([loaded], {"train": [1]}, None, {}):
        with pytest.raises(CircuitError, match=r"source is a \w+, expected a path.*from_arrays"):
            load_splits(wrong)


def test_parquet_files_that_do_not_belong_together_are_refused(tmp_path, capfd):
    write_parquet(tmp_path / "set" / "train-0-of-2.parquet", [0, 1] * 5)
    write_parquet(tmp_path / "set" / "train-1-of-2.parquet", [0, 1] * 5, image="img")
    with pytest.raises(CircuitError, match=r"can't be read: .*same columns"):
        load_splits(str(tmp_path / "set"))
    assert capfd.readouterr() == ("", "")


def test_a_source_without_training_images_is_refused(tmp_path):
    for name in ("test", "valid"):
        write_parquet(tmp_path / "set" / f"{name}.parquet", [0, 1])
    with pytest.raises(CircuitError, match=r"\['test', 'validation'\] but none to train on"):
        load_splits(str(tmp_path / "set"))


def test_a_parquet_file_cut_short_is_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [0, 1] * 5)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CircuitError, match=r"x\.parquet can't be read"):
        load_splits(str(file))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no parquet files in {DATA}")
@pytest.mark.parametrize(("pattern", "size"), [("cifar10_*", 32), ("tiny_imagenet_animals_*", 64)])
def test_the_parquet_files_of_the_experiments_are_read(pattern, size):
    splits = load_splits(str(DATA / f"{pattern}.parquet"), limit=20)
    for part in each(splits).values():
        assert part.images.shape == (20, 3, size, size)
        assert part.images.std() > 0.2
        assert part.labels.bincount().max() <= 2


# The hub


def test_a_hub_data_set_keeps_the_splits_it_names(tmp_path, monkeypatch):
    import datasets

    from circuitvit.images.sources import source_kinds as sources

    def stored(path: Path, labels: list) -> datasets.Dataset:
        return datasets.Dataset.from_parquet(str(write_parquet(path, labels)))

    hub = datasets.DatasetDict(
        train=stored(tmp_path / "1.parquet", [0, 1] * 10),
        valid=stored(tmp_path / "2.parquet", [0, 1, 1]),
        extra=stored(tmp_path / "3.parquet", [0, 1] * 30),
    )
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, streaming: {"someone/some-images": hub}[name]
    )
    splits = load_splits("someone/some-images")
    assert [len(part) for part in each(splits).values()] == [16, 4, 3]
