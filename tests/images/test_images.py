"""Splitting images, and what is said where there are none."""

import sys
import time

import numpy as np
import pytest
import torch

from circuitvit.errors import CircuitError, in_short
from circuitvit.images import Splits, load_splits
from circuitvit.images.tensor_checks import balanced, stratified


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits("digits")


def each(splits: Splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


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


@pytest.mark.parametrize("options", [{}, {"streaming": True, "limit": 5}])
def test_an_unreachable_hub_is_said_at_once_in_one_line(monkeypatch, capfd, options):
    import huggingface_hub
    from datasets import config

    # Port 9 of this machine: no one listens, with or without a network.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(config, "HF_ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(CircuitError, match=r"hub can't be reached.*'digits'") as caught:
        load_splits("someone/some-images", **options)
    assert time.monotonic() - begin < 15
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not config.HF_HUB_OFFLINE


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


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("limit", ["10", 10.5, True], "a whole number of images, at least 1"),
        ("seed", [None, "0", 1.5, -1], "a whole number ≥ 0"),
        ("workers", [None, 1.5, "2", -1], "a whole number of threads ≥ 0"),
        ("validation", ["0.2", None, True, float("nan")], "shares > 0 with a sum < 1"),
        ("test", ["0.2", [0.1]], "shares > 0 with a sum < 1"),
        ("split", [["train"], 0.1, {"train": 3}], "an expression such as 'train[:2%]'"),
        ("classes", [3, {"1", "2"}, 0.5], "'animals' or a list of names or indices"),
        ("image_size", ["16", 8.5, True], "at least 1 pixel, a whole number"),
        ("channels", ["3", 3.0, True], "1 (grey) or 3 (RGB)"),
        ("cache", [3], "the path of a folder"),
    ],
)
def test_settings_of_other_types_are_refused(name, values, expected):
    for value in values:
        with pytest.raises(CircuitError) as caught:
            load_splits("digits", **{name: value})
        assert f"{name} is {in_short(value)}" in str(caught.value).replace(" and test", "; test is")
        assert f", expected {expected}" in str(caught.value)


def test_all_wrong_settings_are_told_together():
    wrong = {"limit": "1", "seed": "0", "workers": None, "split": 3, "classes": 3, "test": "x"}
    with pytest.raises(CircuitError) as caught:
        load_splits("", image_size="1", channels="3", cache=1, streaming=True, **wrong)
    for name in (*wrong, "source", "image_size", "channels", "cache"):
        assert f"{name} is " in str(caught.value).replace("and test", "; test is")


def test_numbers_of_numpy_are_numbers():
    own = load_splits("digits", limit=10, seed=1, validation=0.25, image_size=8, channels=1)
    settings = {"limit": np.int64(10), "seed": np.uint8(1), "validation": np.float32(0.25)}
    theirs = load_splits("digits", image_size=np.int32(8), channels=np.int64(1), **settings)
    assert theirs.train.fingerprint() == own.train.fingerprint()


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_not_this_folder(source):
    with pytest.raises(CircuitError, match=r"source is empty; give a path \('\.' is this folder\)"):
        load_splits(source)


def test_images_loads_no_datasets_before_it_reads():
    import subprocess

    heavy = {"datasets", "sklearn", "torchvision"}
    code = f"import sys, circuitvit.images; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
