import json
import time

import numpy as np
import pytest
import torch
from random_models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.images import load_splits
from circuitvit.preprocessing import natural_key

SEEN = cv.Preprocessing(
    mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize="squash", crop=0.875,
    class_names=("cat", "dog", "ship", "frog"),
)  # fmt: skip


def test_a_preprocessing_survives_its_dict():
    assert cv.Preprocessing.from_dict(json.loads(json.dumps(SEEN.as_dict()))) == SEEN
    assert cv.Preprocessing.from_dict({}) == cv.Preprocessing()


def test_one_number_stands_for_all_channels():
    assert cv.Preprocessing(mean=0.5, std=1).mean == (0.5,)


@pytest.mark.parametrize(("side", "crop", "resized"), [(224, 0.875, 256), (224, 0.9, 248), (32, 1.0, 32)])  # fmt: skip
def test_the_side_to_resize_to_is_that_of_timm(side, crop, resized):
    assert cv.Preprocessing(crop=crop).resized_side(side) == resized


def test_wrong_values_are_named_together(as_users_call):
    with pytest.raises(cv.CircuitError) as refusal:
        cv.Preprocessing(
            mean=(0.5, float("nan")), std=(1, 0, 1), interpolation="cubic", resize="fit", crop=1.5,
            class_names=["cat", "cat"],
        )  # fmt: skip
    for part in (
        "mean is (0.5, nan)", "std is (1.0, 0.0, 1.0)", "mean has 2 values, std 3", "is 'cubic'",
        "resize is 'fit'", "crop is 1.5", "two classes have the same name",
    ):  # fmt: skip
        assert part in str(refusal.value)
    with pytest.raises(cv.CircuitError, match="that of pixels in .0, 1.; divide by 255"):
        cv.Preprocessing(mean=127.5, std=127.5)
    for wrong in ([1], {"means": 1}):
        with pytest.raises(cv.CircuitError, match="not a preprocessing of circuitvit"):
            cv.Preprocessing.from_dict(wrong)


def test_it_travels_with_the_model(tmp_path):
    vit = random_vit(shape(channels=3))
    vit.preprocessing = SEEN
    vit.save_pretrained(tmp_path / "vit")
    assert cv.ViT.from_pretrained(tmp_path / "vit").preprocessing == SEEN
    assert cv.load_vit(tmp_path / "vit").preprocessing == SEEN
    assert cv.load_vit(vit).preprocessing == SEEN
    circuit = cv.Circuit(vit.config, ["embed->m0", "m0->a1.h0.v", "a1.h0->logits"])
    images = random_images(vit, 4)
    unit = cv.compile(vit, circuit, ablation="mean", reference=images)
    edge = cv.compile(vit, circuit, level="edge", ablation="mean", reference=images)
    fresh = cv.compile(vit, circuit, fresh=True)
    pruned = cv.prune_heads(vit, {0: [1]})
    assert {m.preprocessing for m in (unit, edge, fresh, pruned)} == {SEEN}
    edge.save_pretrained(tmp_path / "edge")
    assert cv.CircuitViT.from_pretrained(tmp_path / "edge").preprocessing == SEEN


def test_a_model_without_one_has_none_and_the_same_fingerprint(tmp_path):
    vit = random_vit(shape())
    name = vit.fingerprint()
    vit.save_pretrained(tmp_path)
    assert "preprocessing" not in json.loads((tmp_path / "config.json").read_text())
    vit.preprocessing = SEEN
    assert vit.fingerprint() == name
    vit.save_pretrained(tmp_path)
    assert torch.equal(cv.ViT.from_pretrained(tmp_path).positions, vit.positions)
    vit.preprocessing = None
    vit.save_pretrained(tmp_path)
    assert cv.ViT.from_pretrained(tmp_path).preprocessing is None


def test_values_of_another_kind_are_named_together(as_users_call):
    with pytest.raises(cv.CircuitError) as refusal:
        cv.Preprocessing(mean=None, std="0.5", crop="0.9", class_names=3)
    for part in (
        "mean is None, expected a number", "std is '0.5', expected a number or one for each",
        "crop is '0.9', expected a share", "class_names is 3, expected a list of names",
    ):  # fmt: skip
        assert part in str(refusal.value)
    for wrong in (
        dict(mean=()), dict(std=[]), dict(mean=[0.5, "x"]), dict(mean={"r": 1}), dict(mean=True),
        dict(crop=None), dict(crop=True), dict(crop=float("nan")), dict(class_names="abc"),
        dict(class_names={"a": 0}), dict(interpolation=[]), dict(resize=None), dict(mean=[[0.5]]),
        dict(class_names=["a", "b", "a"]),
    ):  # fmt: skip
        with pytest.raises(cv.CircuitError, match="a Preprocessing cannot be made"):
            cv.Preprocessing(**wrong)
        with pytest.raises(cv.CircuitError, match="a Preprocessing cannot be made"):
            cv.Preprocessing.from_dict(wrong)


def test_arrays_and_tensors_of_numbers_are_taken():
    seen = cv.Preprocessing(torch.tensor([0.25, 0.5]), np.array([0.5, 1.0]), crop=np.float32(0.5))
    assert (seen.mean, seen.std) == ((0.25, 0.5), (0.5, 1.0))
    assert cv.Preprocessing(np.float32(0.25), [np.float32(0.5)]).std == (0.5,)
    assert json.loads(json.dumps(seen.as_dict()))["crop"] == 0.5


def test_what_is_no_preprocessing_is_refused_before_anything_is_written(tmp_path):
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path / "old")
    before = (tmp_path / "old" / "model.safetensors").read_bytes()
    other = random_vit(shape(), seed=1)
    other.preprocessing = "x"
    for folder in ("old", "new"):
        with pytest.raises(cv.CircuitError, match="preprocessing is 'x', expected a cv.Prep"):
            other.save_pretrained(tmp_path / folder)
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()


HOSTILE = (
    [], {}, None, True, False, -1, 0, 1, 1.5, 10**400, 10**5000, 2**63, 1e308, 1e-300, 5e-324,
    float("nan"), float("inf"), "", "x" * 10_000, "\0", "\ud800", b"x", [[]], [[1]], [None], {"a": 1},
    [1e308], [10**400], ["1"], [True], ["a", "a"], ["\ud800"], np.zeros((2, 2)), torch.zeros(2, 2),
)  # fmt: skip


@pytest.mark.parametrize("name", SEEN.as_dict())
def test_no_value_of_any_kind_is_an_error_of_another_type(name):
    lengths = [0]
    for value in HOSTILE:
        try:
            made = cv.Preprocessing.from_dict({**SEEN.as_dict(), name: value})
        except cv.CircuitError as cause:
            lengths.append(len(str(cause)))
            continue
        json.dumps(made.as_dict(), ensure_ascii=False).encode()
        assert made.resized_side(224) <= 22_400
        assert np.isfinite(np.float32(1) / np.float32(made.std)).all()
    assert max(lengths) < 1000


def test_what_is_no_preprocessing_at_all_is_told():
    for value in HOSTILE:
        if not isinstance(value, dict) or value:
            with pytest.raises(cv.CircuitError, match="this is not a preprocessing"):
                cv.Preprocessing.from_dict(value)


def test_numbers_that_no_normalised_picture_has_are_told():
    for name, value in (("mean", 10**400), ("std", 5e-324), ("std", 1e308), ("crop", 1e-300)):
        with pytest.raises(cv.CircuitError, match=f"{name} is "):
            cv.Preprocessing(**{name: value})
    for value in ((0, 10**400), (-1e308, 1e308), ("a", "b"), (0, 1, 2), 5):
        with pytest.raises(
            cv.CircuitError, match="pixel_range is .*two numbers, black below white"
        ):
            load_splits("digits", pixel_range=value)
    with pytest.raises(cv.CircuitError, match="image_size is 9223372036854775808, .*at most 16384"):
        load_splits("digits", image_size=2**63)


def test_a_hundred_thousand_names_take_no_longer_than_they_must():
    names = tuple(f"class {number}" for number in range(100_000))
    start = time.process_time()
    assert cv.Preprocessing(class_names=names).class_names == names
    with pytest.raises(cv.CircuitError) as told:
        cv.Preprocessing(class_names=(*names, *names))
    assert time.process_time() - start < 2
    assert len(str(told.value)) < 200


def test_numbers_of_any_length_are_sorted_by_value():
    names = ["b1", "a1" + "0" * 5000, "a" + "9" * 5000, "a10", "a010", "a2"]
    assert sorted(names, key=natural_key) == [
        "a2", "a010", "a10", "a" + "9" * 5000, "a1" + "0" * 5000, "b1",
    ]  # fmt: skip
