"""Loading, splitting and pairing of images."""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs, Splits, load_splits
from circuitvit.images.sampling import balanced, stratified

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the home folder."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits("digits")


def each(splits: Splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def picture(seed: int, size=(8, 8), mode="RGB") -> Image.Image:
    """A picture of few colours, so that formats without loss keep it to the byte."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode=None)


def write_folder(root: Path, classes=("cat", "dog"), count=10, **look) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * label + i, **look).save(root / name / f"{i}.png")
    return root


def write_parquet(path: Path, labels: list, *, image="image", label="label", seed=0) -> Path:
    """Plain parquet by pyarrow: no feature types, as other tools write it."""
    import io

    rows = []
    for i in range(len(labels)):
        buffer = io.BytesIO()
        picture(seed + i).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def as_bytes(image: torch.Tensor) -> np.ndarray:
    """The bytes [height width channel] that a normalised image was made of."""
    return ((image * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()


# The digits


def test_the_digits_are_scikit_learns_scaled_to_minus_one_and_one(digits):
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    expected = {(tuple(row / 8 - 1), label) for row, label in zip(pixels, targets, strict=True)}
    found = [
        (tuple(image.flatten().double().tolist()), int(label))
        for part in each(digits).values()
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert len(found) == 1797
    assert set(found) == expected
    assert digits.train.images.shape[1:] == (1, 8, 8)
    assert digits.train.labels.dtype == torch.int64
    assert digits.train.class_names == tuple("0123456789")


def test_no_digit_is_in_two_parts(digits):
    rows = {
        name: {row.numpy().tobytes() for row in part.images} for name, part in each(digits).items()
    }
    assert sum(len(row) for row in rows.values()) == 1797  # the 1797 digits are all different
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]
    assert not rows["validation"] & rows["test"]


def test_parts_have_the_share_asked_for_and_every_class_in_proportion():
    splits = load_splits("digits", validation=0.1, test=0.3)
    whole = torch.cat([part.labels for part in each(splits).values()]).bincount()
    for part, share in ((splits.validation, 0.1), (splits.test, 0.3), (splits.train, 0.6)):
        assert len(part) == pytest.approx(share * 1797, abs=1)
        assert (part.labels.bincount(minlength=10) - share * whole).abs().max() <= 1


def test_the_seed_alone_decides_the_parts(digits):
    again, other = load_splits("digits"), load_splits("digits", seed=1)
    for name, part in each(digits).items():
        assert torch.equal(part.images, each(again)[name].images)
        assert part.fingerprint() == each(again)[name].fingerprint()
        assert part.fingerprint() != each(other)[name].fingerprint()


def test_a_limit_takes_as_many_of_each_class_from_the_same_parts(digits):
    limited = load_splits("digits", limit=43)
    for name, part in each(limited).items():
        assert len(part) == 43
        counts = part.labels.bincount(minlength=10)
        assert counts.min() == 4
        assert counts.max() == 5
        whole = {row.numpy().tobytes() for row in each(digits)[name].images}
        assert {row.numpy().tobytes() for row in part.images} < whole


def test_digits_come_in_another_size_and_in_three_channels():
    part = load_splits("digits", image_size=16, channels=3, limit=5).test
    assert part.images.shape == (5, 3, 16, 16)
    assert torch.equal(part.images[:, 0], part.images[:, 2])
    assert part.images.abs().max() <= 1


@pytest.mark.parametrize("sizes", [(3,), (5, 9), (1, 1, 40)])
def test_a_stratified_cut_is_exact_and_within_one_image_of_proportion(sizes):
    labels = np.random.default_rng(0).choice(4, 60, p=[0.5, 0.3, 0.15, 0.05])
    parts = stratified(labels, sizes, seed=3)
    assert [len(part) for part in parts] == [*sizes, 60 - sum(sizes)]
    assert sorted(np.concatenate(parts)) == list(range(60))
    share = np.bincount(labels, minlength=4) / 60
    for part in parts[:-1]:
        assert np.abs(np.bincount(labels[part], minlength=4) - share * len(part)).max() <= 1


def test_any_head_of_a_balanced_draw_is_balanced_until_a_class_runs_out():
    labels = np.array([0] * 20 + [1] * 20 + [2] * 2)
    drawn = labels[balanced(labels, 30, seed=5)]
    for count in range(1, 7):
        assert np.ptp(np.bincount(drawn[:count], minlength=3)) <= 1
    assert np.bincount(drawn).tolist() == [14, 14, 2]


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


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for file in (folder / "cat").iterdir():
        Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(file)
    with pytest.raises(CircuitError, match=r"pixel mode I.*8 bits"):
        load_splits(str(folder))


def test_a_broken_image_is_named(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for file in (folder / "dog").iterdir():
        file.write_bytes(b"not a picture")
    with pytest.raises(CircuitError, match=r"image \d+ of the train images can't be read"):
        load_splits(str(folder))


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(CircuitError, match=r"holds no images.*one folder a class"):
        load_splits(str(tmp_path / "empty"))


def test_images_without_class_folders_are_refused(tmp_path):
    write_folder(tmp_path / "flat", ("cat",))
    with pytest.raises(CircuitError, match=r"labels is not clear.*one folder a class"):
        load_splits(str(tmp_path / "flat"))
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
    with pytest.raises(CircuitError, match=r"labels is not clear.*\['image', 'label'\]"):
        load_splits(str(file))


def test_missing_labels_are_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", ["a", None] * 5)
    with pytest.raises(CircuitError, match="have no label in the column 'label'"):
        load_splits(str(file))


def test_parquet_files_that_do_not_belong_together_are_refused(tmp_path, capfd):
    write_parquet(tmp_path / "set" / "a_train.parquet", [0, 1] * 5)
    write_parquet(tmp_path / "set" / "b_train.parquet", [0, 1] * 5, image="img")
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


# Nothing there


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "missing.parquet", "a/b/c"])
def test_a_missing_path_is_named_with_what_may_stand_there(source):
    with pytest.raises(CircuitError, match=r"nothing at .*Check the path") as caught:
        load_splits(source)
    assert source in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CircuitError, match="not a parquet file"):
        load_splits(str(tmp_path / "notes.txt"))


def test_an_unreachable_hub_is_said_at_once_in_one_line(monkeypatch, capfd):
    import huggingface_hub
    from datasets import config

    # Port 9 of this machine: no one listens, with or without a network.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(config, "HF_ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(CircuitError, match=r"hub can't be reached.*'digits'") as caught:
        load_splits("someone/some-images")
    assert time.monotonic() - begin < 15
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not config.HF_HUB_OFFLINE


def test_a_hub_data_set_keeps_the_splits_it_names(tmp_path, monkeypatch):
    import datasets

    from circuitvit.images import sources

    def stored(path: Path, labels: list) -> datasets.Dataset:
        return datasets.Dataset.from_parquet(str(write_parquet(path, labels)))

    hub = datasets.DatasetDict(
        train=stored(tmp_path / "1.parquet", [0, 1] * 10),
        valid=stored(tmp_path / "2.parquet", [0, 1, 1]),
        extra=stored(tmp_path / "3.parquet", [0, 1] * 30),
    )
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"someone/some-images": hub}[name])
    splits = load_splits("someone/some-images")
    assert [len(part) for part in each(splits).values()] == [16, 4, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"validation": 0.5, "test": 0.5}, "sum < 1"),
        ({"test": 0.0}, "shares > 0"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(CircuitError, match=message):
        load_splits("digits", **wrong)


def test_images_loads_no_datasets_before_it_reads():
    import subprocess

    heavy = {"datasets", "sklearn", "torchvision"}
    code = f"import sys, circuitvit.images; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ImageSet


def image_set(labels, classes=3) -> ImageSet:
    images = torch.arange(len(labels) * 4.0).reshape(-1, 1, 2, 2)
    return ImageSet(images, torch.tensor(labels), tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (slice(1, 3), [1, 2]),
        ([3, 0, 0], [3, 0, 0]),
        (torch.tensor([-1]), [3]),
        (np.array([2, 1]), [2, 1]),
        ([True, False, False, True], [0, 3]),
        (range(2), [0, 1]),
    ],
)
def test_a_subset_holds_the_images_asked_for(indices, expected):
    images = image_set([0, 1, 2, 0])
    part = images.subset(indices)
    assert torch.equal(part.images, images.images[expected])
    assert torch.equal(part.labels, images.labels[expected])
    assert part.class_names == images.class_names


@pytest.mark.parametrize("indices", [[4], [-5], [0.5], [True, False], [[0, 1]]])
def test_indices_that_do_not_fit_are_refused(indices):
    with pytest.raises(CircuitError, match="don't fit 4 images"):
        image_set([0, 1, 2, 0]).subset(torch.tensor(indices))


def test_an_image_set_names_every_problem_at_once():
    with pytest.raises(CircuitError) as caught:
        ImageSet(torch.full((2, 1, 2, 2), torch.nan), torch.tensor([0, 1, 7]), ("a", "b"))
    for part in ("8 values that are NaN", r"shape (3,), expected (2,)", "from 0 to 7", "below 2"):
        assert part in str(caught.value)


def test_an_empty_image_set_is_refused():
    with pytest.raises(CircuitError, match="no image"):
        image_set([0, 1]).subset([])


def test_a_fingerprint_names_shape_dtype_and_bytes():
    images = image_set([0, 1])
    digest = hashlib.sha256(b"(2, 1, 2, 2) torch.float32;" + images.images.numpy().tobytes())
    digest.update(b"(2,) torch.int64;" + images.labels.numpy().tobytes())
    assert images.fingerprint() == digest.hexdigest()[:16]
    shape = ImageSet(images.images.view(2, 4, 1, 1), images.labels, images.class_names)
    assert shape.fingerprint() != images.fingerprint()


# Pairs


def make_pairs(count=4, **changes) -> Pairs:
    values = {
        "clean": torch.arange(count * 4.0).reshape(-1, 1, 2, 2),
        "corrupt": -torch.arange(count * 4.0).reshape(-1, 1, 2, 2),
        "labels": torch.arange(count),
        "corrupt_labels": torch.arange(count) + 1,
    }
    return Pairs(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": torch.zeros(4, 2, 2)}, r"clean has shape \(4, 2, 2\), expected 4 axes"),
        ({"clean": torch.zeros(4, 1, 2, 2, dtype=torch.uint8)}, r"torch.uint8.*use .float\(\)"),
        ({"corrupt": torch.zeros(3, 1, 2, 2)}, r"corrupt has shape \(3, 1, 2, 2\), clean \(4, 1"),
        ({"corrupt": torch.zeros(4, 1, 2, 2).double()}, "dtype torch.float64, clean torch.float32"),
        ({"corrupt": torch.full((4, 1, 2, 2), torch.inf)}, "corrupt has 16 values that are NaN"),
        (
            {"labels": torch.zeros(3, dtype=torch.int64)},
            r"labels has shape \(3,\), expected \(4,\)",
        ),
        ({"labels": torch.tensor([0, 1, 2, -1])}, "labels goes from -1 to 2"),
        ({"corrupt_labels": torch.zeros(4)}, r"corrupt_labels has dtype torch.float32.*.long\(\)"),
        ({"labels": [0, 1, 2, 3]}, "labels is a list, expected a tensor"),
        ({"clean": np.zeros((4, 1, 2, 2))}, "clean is a ndarray, expected a tensor"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(CircuitError, match=message):
        make_pairs(**changes)


def test_pairs_name_every_problem_at_once():
    with pytest.raises(CircuitError) as caught:
        make_pairs(corrupt=torch.zeros(3, 1, 2, 2).half(), labels=torch.ones(2))
    for part in ("corrupt has shape", "corrupt has dtype", "labels has shape", "labels has dtype"):
        assert part in str(caught.value)


def test_zero_pairs_are_refused():
    with pytest.raises(CircuitError, match="no image"):
        Pairs(clean=torch.zeros(0, 1, 2, 2))


def test_clean_images_alone_are_pairs_too():
    pairs = Pairs(clean=torch.ones(2, 1, 2, 2))
    assert len(pairs) == 2
    assert pairs.subset([1]).corrupt is None
    assert pairs.to(dtype=torch.float64).labels is None


def test_pairs_move_together_without_touching_the_callers_tensors():
    clean = torch.ones(4, 1, 2, 2)
    pairs = make_pairs(clean=clean)
    double, part = pairs.to(dtype=torch.float64), pairs.subset([2, 0])
    assert double.clean.dtype == double.corrupt.dtype == torch.float64
    assert double.labels.dtype == torch.int64
    assert part.labels.tolist() == [2, 0]
    assert part.corrupt_labels.tolist() == [3, 1]
    assert torch.equal(part.corrupt, pairs.corrupt[[2, 0]])
    part.clean.zero_()
    double.clean.zero_()
    assert torch.equal(clean, torch.ones(4, 1, 2, 2))


def test_a_pairs_fingerprint_tells_every_field_apart():
    pairs = make_pairs()
    others = [
        make_pairs(clean=pairs.clean + 1),
        make_pairs(corrupt=None),
        make_pairs(labels=None),
        make_pairs(corrupt_labels=pairs.labels),
        make_pairs(labels=pairs.corrupt_labels, corrupt_labels=pairs.labels),
        pairs.to(dtype=torch.float64),
    ]
    assert len({p.fingerprint() for p in [pairs, *others]}) == 7
    assert make_pairs().fingerprint() == pairs.fingerprint()


def rows(images: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in images]


def test_pairs_by_class_are_of_those_classes_and_no_clean_image_comes_twice(digits):
    pairs = Pairs.by_class(digits.test, clean="3", corrupt=8, count=30)
    labels = digits.test.labels.tolist()
    of_class = dict(zip(rows(digits.test.images), labels, strict=True))
    assert [of_class[row] for row in rows(pairs.clean)] == [3] * 30 == pairs.labels.tolist()
    assert (
        [of_class[row] for row in rows(pairs.corrupt)] == [8] * 30 == pairs.corrupt_labels.tolist()
    )
    assert len(set(rows(pairs.clean))) == 30


def test_pairs_of_all_classes_are_balanced_and_never_of_one_class(digits):
    pairs = Pairs.by_class(digits.train, count=205)
    counts = pairs.labels.bincount(minlength=10)
    assert counts.min() == 20
    assert counts.max() == 21
    assert (pairs.labels != pairs.corrupt_labels).all()
    assert len(set(rows(pairs.clean))) == 205


def test_other_classes_are_drawn_uniformly_though_their_sizes_differ():
    images = image_set([0] * 900 + [1] * 890 + [2] * 10)
    pairs = Pairs.by_class(images, clean="a", count=900)
    assert pairs.corrupt_labels.bincount().tolist()[0] == 0
    # Binomial(900, ½) is within 450 ± 75 at five standard deviations.
    assert abs(int((pairs.corrupt_labels == 2).sum()) - 450) < 75


def test_one_corrupt_class_is_left_out_of_the_clean_ones():
    pairs = Pairs.by_class(image_set([0, 1, 2] * 4), corrupt="b", count=8)
    assert set(pairs.labels.tolist()) == {0, 2}
    assert set(pairs.corrupt_labels.tolist()) == {1}


def test_the_seed_alone_decides_the_pairs(digits):
    draws = [Pairs.by_class(digits.test, count=20, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_smaller_class_gives_all_it_has_and_the_others_the_rest():
    pairs = Pairs.by_class(image_set([0] * 9 + [1] * 9 + [2]), count=9)
    assert pairs.labels.bincount().tolist() == [4, 4, 1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"clean": "z", "count": 1}, "clean is 'z'.* names: a, b, c"),
        ({"corrupt": 3, "count": 1}, "corrupt is 3.*index below 3"),
        ({"clean": "a", "corrupt": 0, "count": 1}, "both the class 'a'"),
        ({"clean": "a", "count": 3}, "3 pairs were asked for, but there are 2 clean images"),
        ({"count": 0}, "0 pairs were asked for"),
        ({"clean": "c", "count": 1}, "hold none of that class"),
    ],
)
def test_pairs_that_cannot_be_drawn_are_refused(asked, message):
    with pytest.raises(CircuitError, match=message):
        Pairs.by_class(image_set([0, 1, 0, 1]), **asked)


def test_images_of_one_class_make_no_pairs():
    with pytest.raises(CircuitError, match="all images are of one class"):
        Pairs.by_class(image_set([1, 1, 1]), count=2)
