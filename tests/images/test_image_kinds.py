"""Files of all kinds: what Pillow opens is read, everything else is named with its reason."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import each, own_cache, picture, write_folder, write_parquet  # noqa: F401
from PIL import Image

from circuitvit.errors import CircuitError, reason_of
from circuitvit.images import ImageSet, load_splits
from circuitvit.images.decoding.pictures import file_kind

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def all_of(splits) -> int:
    return sum(map(len, each(splits).values()))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.avif", "avif"), ("x.jfif", "jpeg"), ("x", "png"), ("x.JPG", "jpeg"), ("x.bin", "bmp"),
        ("x.qoi", "qoi"), ("x.webp", "webp"), ("x.PNG", "jpeg"), ("x.jpg_large", "jpeg"),
        ("x.txt", "gif"), ("x.mpo", "jpeg"), ("x.tif", "tiff"),
    ],
)  # fmt: skip
def test_what_pillow_opens_is_read_whatever_it_is_called(tmp_path, name, form):
    folder = write_folder(tmp_path / "pets")
    if form.upper() not in Image.SAVE and not Image.init() and form.upper() not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    picture(3).save(folder / "cat" / name, form)
    splits = load_splits(folder)
    assert (all_of(splits), splits.skipped) == (21, ())


def test_pictures_that_pillow_cannot_read_are_listed_with_the_reason(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for name, data in {
        "a.heic": HEIC, "b": HEIC, "c.jpg": HEIC, "d.jxl": b"\xff\x0a" + b"\0" * 30,
        "e.NEF": b"II*\0" + b"\0" * 30, "f.svg": b"<?xml version='1.0'?>\n<svg>", "g.png": b"",
        "h.jpg": b"<!DOCTYPE html><html>", "i.png": b"version https://git-lfs.github.com/spec/v1\n",
        "j.gif": b"nothing known, and long enough", "k.heic": b"nothing known",
    }.items():  # fmt: skip
        (folder / "cat" / name).write_bytes(data)
    with pytest.warns(UserWarning, match=r"^11 of 31 images can't be read: .*names all\.$"):
        splits = load_splits(folder)
    assert all_of(splits) == 20
    reasons = {
        re.search(r"cat/(\w)\b", line).group(1): line.rsplit(": ", 1)[1] for line in splits.skipped
    }
    for letters, words in {
        "abc": "HEIC", "d": "JPEG XL", "e": "raw file", "f": "SVG", "g": "is empty",
        "h": "web page", "i": "git lfs pull", "j": "identify", "k": "identify",
    }.items():  # fmt: skip
        for letter in letters:
            assert words in reasons[letter]
    assert not any("0x" in line or "BytesIO" in line for line in splits.skipped)
    with pytest.raises(CircuitError, match=r"11 of 31 .*leave them out with strict=False"):
        load_splits(folder, strict=True)


def test_files_that_are_no_pictures_are_named_once_and_break_nothing(tmp_path, as_users_call):
    folder = write_folder(tmp_path / "pets")
    for name in ("README", "labels.json", "cat/Thumbs.db", "cat/a.txt", "dog/x.mp4", "cat/x"):
        (folder / name).write_bytes(b"P1 and so on: no picture")
    (folder / "dog" / ".DS_Store").write_bytes(b"hidden")
    with pytest.warns(UserWarning, match=r"^6 files in .* are no pictures") as said:
        splits = load_splits(folder, strict=True)
    assert len(said) == 1
    assert said[0].filename == __file__
    for name in ("README", "labels.json", "cat/Thumbs.db", "cat/a.txt", "dog/x.mp4"):
        assert name in str(said[0].message)
    assert (all_of(splits), splits.skipped) == (20, ())


def test_short_files_of_any_bytes_are_sorted_out_without_an_error(tmp_path):
    draw = np.random.default_rng(0)
    for count in range(200):
        (tmp_path / "x").write_bytes(draw.bytes(count // 4))
        assert file_kind(tmp_path / "x")[0] in ("picture", "unreadable", "stranger")


def test_a_folder_or_class_of_unreadable_pictures_says_so(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "eel").mkdir()
    (folder / "eel" / "0.heic").write_bytes(HEIC)
    with pytest.warns(UserWarning) as said:  # noqa: PT030  two, each with its own text
        assert load_splits(folder).train.class_names == ("cat", "dog")
    assert re.search(r"no images that can be read.*: pets/eel\.", str(said[0].message))
    assert re.search(r"1 of 21 images can't be read: .*0\.heic: it is a HEIC", str(said[1].message))
    with pytest.raises(CircuitError, match=r"no images that can be read: .*0\.heic: it is a HEIC"):
        load_splits(folder / "eel")


def test_pictures_beside_parquet_files_are_told(tmp_path):
    write_parquet(tmp_path / "x" / "train.PARQUET", [0, 1] * 10)
    picture(1).save(tmp_path / "x" / "0.png")
    with pytest.warns(UserWarning, match=r"1 parquet files and 1 picture files \(0\.png"):
        assert all_of(load_splits(tmp_path / "x")) == 20


# More than 8 bits (case 21); 16 are in test_image_files


def test_images_of_floats_are_scaled_from_their_range_and_refused_beyond_it(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for name, value in (("a", -1.0), ("b", 3.0), ("c", 99.0), ("d", np.nan)):
        pixels = np.full((8, 8), value, dtype=np.float32)
        Image.fromarray(pixels).save(folder / "cat" / f"{name}.tiff")
    Image.fromarray(np.full((8, 8), 2, dtype=np.int32)).save(folder / "cat" / "e.tiff")
    with pytest.warns(UserWarning, match="2 of 25 images can't be read"):
        splits = load_splits(str(folder), pixel_range=(-1, 3))
    said = " ".join(splits.skipped)
    assert re.search(
        r"c\.tiff\): its pixels \(mode F\) go from 99 to 99, beyond pixel_range \(-1, 3\)", said
    )
    assert re.search(r"d\.tiff\): it holds pixels \(mode F\) that are NaN", said)
    images = torch.cat([part.images for part in each(splits).values()])
    flat = {round(float(i[0, 0, 0]), 4) for i in images if float(i.std()) == 0}
    assert flat == {-1.0, 0.5, 1.0}
    with pytest.raises(
        CircuitError, match=r"pixel_range is \(3, 3\), expected two numbers, black below white"
    ):
        load_splits(str(folder), pixel_range=(3, 3))


# Paths


@pytest.mark.parametrize("name", ["a::b", "zip:x::y", "a\\b", "a[1]*?", "100%", "x#y", "ä {b}"])
def test_paths_with_any_characters_are_read(tmp_path, name):
    folder = write_folder(tmp_path / name, (name, "dog"))
    splits = load_splits(folder)
    assert set(splits.train.class_names) == {name, "dog"}
    assert all_of(splits) == 20
    file = write_parquet(tmp_path / f"set {name}" / "train.parquet", ["x", "y"] * 10)
    for source in (file, file.parent):
        assert load_splits(source).train.class_names == ("x", "y")
        assert all_of(load_splits(source, streaming=True, limit=9)) == 9


def test_a_path_that_datasets_misreads_is_refused_where_only_it_can_read(tmp_path):
    folder = write_folder(tmp_path / "a::b")
    (folder / "metadata.csv").write_text("file_name,label\ncat/0.png,x\n")
    with pytest.raises(CircuitError, match=r"holds '::'.*Rename it"):
        load_splits(folder)


def test_a_broken_parquet_file_at_such_a_path_is_told(tmp_path):
    file = write_parquet(tmp_path / "a::b" / "x.parquet", [0, 1] * 5)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CircuitError, match=r"x\.parquet can't be read: .*are whole"):
        load_splits(file)


# Labels


def test_labels_that_are_floats_are_taken_where_they_are_whole(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [0.0, 1.0, 2.0, 10.0] * 5)
    assert load_splits(file).train.class_names == ("0", "1", "2", "10")
    images = np.zeros((3, 4, 4), np.uint8)
    assert ImageSet.from_arrays(images, np.array([0.0, 2.0, 1.0])).labels.tolist() == [0, 2, 1]
    with pytest.raises(CircuitError, match=r"of type float64 such as 1\.5, expected whole numbers"):
        ImageSet.from_arrays(images, np.array([0.0, 1.5, 1.0]))
    file = write_parquet(tmp_path / "y.parquet", [0.0, float("nan")] * 5)
    with pytest.raises(CircuitError, match="5 images have no label"):
        load_splits(file)


def test_a_label_column_of_another_type_is_named_rather_than_another_column_taken(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [[0], [1]] * 5)
    table = pq.read_table(file)
    pq.write_table(table.append_column("id", pa.array(range(10))), file)
    with pytest.raises(CircuitError, match=r"column 'label' holds values of type List"):
        load_splits(file)


# What `datasets` has loaded (case 16)


def failing(batch: dict) -> dict:
    raise KeyError("pixel_values")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.with_transform(failing),
        lambda rows: rows.with_format("torch"),
        lambda rows: rows.with_format("numpy", columns=["label"]),
        lambda rows: rows.with_format("pandas"),
        lambda rows: rows.with_format("arrow"),
        lambda rows: rows.select(range(20)).with_transform(failing, columns=["image"]),
    ],
)
def test_stored_rows_are_read_whatever_the_format(tmp_path, change):
    import datasets

    file = write_parquet(tmp_path / "x.parquet", ["a", "b"] * 10)
    plain = datasets.Dataset.from_parquet(str(file))
    expected, changed = load_splits(plain), change(plain)
    before = dict(changed.format)
    assert load_splits(changed).test.fingerprint() == expected.test.fingerprint()
    both = datasets.DatasetDict(train=changed)
    assert load_splits(both).test.fingerprint() == expected.test.fingerprint()
    assert changed.format == before


def test_streams_of_another_format_are_read_too(tmp_path):
    import datasets

    file = write_parquet(tmp_path / "x.parquet", ["a", "b"] * 10)
    stream = datasets.Dataset.from_parquet(str(file)).to_iterable_dataset().with_format("torch")
    assert all_of(load_splits(stream, streaming=True, limit=10)) == 10


def test_a_split_without_a_label_column_has_no_labels(tmp_path):
    import datasets

    rows = datasets.Dataset.from_parquet(str(write_parquet(tmp_path / "x.parquet", [0, 1] * 10)))
    both = datasets.DatasetDict(train=rows, test=rows.select(range(4)).remove_columns("label"))
    with pytest.raises(CircuitError, match="4 images have no label .*in test of DatasetDict"):
        load_splits(both)
    assert all_of(load_splits(both, split="train")) == 20


# Reasons


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("cannot identify <_io.BytesIO object at 0x7f1a>.", "cannot identify a _io.BytesIO"),
        ("\x1b[31mred\x1b[0m\n  and   more\n", "red and more"),
        ("It is blocked. Set weights_only=False to load it. Or not", "It is blocked. Or not"),
        ("Please pass trust_remote_code=True to run it.", "ValueError"),
        ("", "ValueError"),
    ],
)
def test_what_libraries_say_becomes_one_safe_line(said, expected):
    assert reason_of(ValueError(said)) == expected
