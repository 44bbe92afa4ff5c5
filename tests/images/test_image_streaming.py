"""Images as they stream in, from parquet files and the hub."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import each, own_cache, picture, write_folder, write_parquet  # noqa: F401

from circuitvit.errors import CircuitError
from circuitvit.images import load_splits
from circuitvit.images.sources import source_kinds as sources


def keys(splits) -> dict[str, set[bytes]]:
    return {n: {row.numpy().tobytes() for row in part.images} for n, part in each(splits).items()}


@pytest.fixture
def stored(tmp_path) -> Path:
    write_parquet(tmp_path / "set" / "train.parquet", ["cat", "dog", "ant", "bee"] * 100)
    write_parquet(tmp_path / "set" / "test.parquet", ["cat", "dog", "ant", "bee"] * 10, seed=900)
    return tmp_path / "set"


def test_no_more_is_read_than_the_limit_and_parts_are_carved_of_it(stored):
    splits = load_splits(str(stored), streaming=True, limit=30)
    assert [len(part) for part in each(splits).values()] == [24, 6, 30]
    whole, found = keys(load_splits(str(stored))), keys(splits)
    first = {row.numpy().tobytes() for row in load_splits(str(stored), split={
        "train": "train[:240]", "validation": "train[240:]", "test": "test",
    }).train.images}  # fmt: skip
    assert found["test"] < whole["test"]
    assert found["train"] | found["validation"] < first
    assert not found["train"] & found["validation"]
    assert splits.train.class_names == ("ant", "bee", "cat", "dog")


def test_the_seed_alone_decides_what_is_drawn(stored):
    first, again, other = (
        load_splits(str(stored), streaming=True, limit=30, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert keys(first)["train"] != keys(other)["train"]


def test_labels_belong_to_their_images(stored):
    labels = {
        row.numpy().tobytes(): int(label)
        for part in each(load_splits(str(stored))).values()
        for row, label in zip(part.images, part.labels, strict=True)
    }
    for part in each(load_splits(str(stored), streaming=True, limit=30)).values():
        for row, label in zip(part.images, part.labels, strict=True):
            assert labels[row.numpy().tobytes()] == label


def test_what_lies_behind_is_never_read(tmp_path):
    """The second half of the file is destroyed: streaming doesn't come so far."""
    file = write_parquet(tmp_path / "set" / "train.parquet", ["a", "b"] * 300)
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=100)
    place = pq.ParquetFile(file).metadata.row_group(3).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[place - 400 : place + 4000] = b"\xff" * 4400
    file.write_bytes(data)
    with pytest.raises(CircuitError, match="can't be read"):
        load_splits(str(file))
    assert len(load_splits(str(file), streaming=True, limit=10).train) == 6


def test_typed_images_and_classes_stream_too(tmp_path):
    import datasets

    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["tea", "coffee", "milk"])}
    )
    rows = {"photo": [picture(i) for i in range(40)], "kind": [0, 1] * 20}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    splits = load_splits(
        str(tmp_path / "x.parquet"), streaming=True, limit=20, classes=["coffee", "tea"]
    )
    assert splits.train.class_names == ("coffee", "tea")
    assert sum(len(part) for part in each(splits).values()) == 20


def test_a_hub_data_set_streams(stored, monkeypatch):
    import datasets

    def loaded(name, streaming):
        assert name == "someone/some-images"
        files = {"train": str(stored / "train.parquet"), "test": str(stored / "test.parquet")}
        return real("parquet", data_files=files, streaming=streaming)

    real = datasets.load_dataset
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    streamed = load_splits("someone/some-images", streaming=True, limit=12)
    assert keys(streamed)["test"] < keys(load_splits("someone/some-images"))["test"]


def test_what_cannot_stream_says_so(stored, tmp_path):
    with pytest.raises(CircuitError, match=r"without a limit.*split can have no \[slices\]"):
        load_splits(str(stored), streaming=True, split="train[:5]")
    with pytest.raises(CircuitError, match=r"folder of images, which can't be streamed"):
        load_splits(str(write_folder(tmp_path / "pets")), streaming=True, limit=5)
    with pytest.raises(CircuitError, match=r"digits can't be streamed"):
        load_splits("digits", streaming=True, limit=5)


def test_a_column_of_bytes_streams(tmp_path):
    import io

    rows = []
    for i in range(20):
        buffer = io.BytesIO()
        picture(i).save(buffer, "png")
        rows.append(buffer.getvalue())
    table = pa.table({"image": pa.array(rows, pa.binary()), "label": [1, 2] * 10})
    pq.write_table(table, tmp_path / "x.parquet")
    splits = load_splits(str(tmp_path / "x.parquet"), streaming=True, limit=20)
    assert keys(splits)["train"] | keys(splits)["test"] | keys(splits)["validation"] == {
        row for rows in keys(load_splits(str(tmp_path / "x.parquet"))).values() for row in rows
    }
