"""ImageSet and Pairs: what they refuse, and how pairs are drawn."""

import hashlib

import numpy as np
import pytest
import torch

from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs, Splits, load_splits


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits("digits")


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


def test_a_negative_seed_is_refused():
    with pytest.raises(CircuitError, match="seed is -1, expected a whole number ≥ 0"):
        load_splits("digits", seed=-1)
