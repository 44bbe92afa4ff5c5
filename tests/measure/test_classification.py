import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

import circuitvit as cv
from circuitvit.measure.models.accuracy import classification


def drawn(images=400, classes=7, scale=2.0, seed=0):
    """Logits that are right more often than not, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = scale * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(images), labels] += scale
    return logits, labels


def shares_of(logits):
    powers = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def expected_calibration_error(shares, labels, bins=15):
    """As Guo et al. write it, image by image."""
    found = [[] for _ in range(bins)]
    for row, label in zip(shares, labels, strict=True):
        place = next(b for b in range(bins) if row.max() <= (b + 1) / bins or b == bins - 1)
        found[place].append((row.max(), row.argmax() == label))
    return sum(
        len(items)
        / len(labels)
        * abs(np.mean([c for c, _ in items]) - np.mean([r for _, r in items]))
        for items in found
        if items
    )


def test_means_over_classes_equal_scikit_learns():
    logits, labels = drawn()
    found, guessed = classification(logits, labels), logits.argmax(1)
    assert found.precision == pytest.approx(precision_score(labels, guessed, average="macro"))
    assert found.recall == pytest.approx(recall_score(labels, guessed, average="macro"))
    assert found.recall == pytest.approx(balanced_accuracy_score(labels, guessed))
    assert found.f1 == pytest.approx(f1_score(labels, guessed, average="macro"))
    assert found.per_class == pytest.approx(recall_score(labels, guessed, average=None))
    assert sum(found.support) == 400


def test_confidence_entropy_and_calibration_equal_their_definitions():
    logits, labels = drawn()
    found, shares = classification(logits, labels), shares_of(logits)
    most, right = shares.max(1), shares.argmax(1) == labels.numpy()
    assert found.confidence == pytest.approx(most.mean())
    assert found.confidence_right == pytest.approx(most[right].mean())
    assert found.confidence_wrong == pytest.approx(most[~right].mean())
    assert found.gap == pytest.approx(most[right].mean() - most[~right].mean())
    assert found.entropy == pytest.approx(entropy(shares, axis=1).mean())
    error = expected_calibration_error(shares, labels.numpy())
    assert found.calibration_error == pytest.approx(error)
    assert 0.001 < error < 0.5
    assert sum(item.images for item in found.bins) == 400
    assert np.array_equal(found.right, right)


def test_the_interval_of_top1_is_about_two_standard_errors_each_way():
    found = classification(*drawn(images=2000))
    share = found.accuracy.top1
    width = 2 * 1.96 * (share * (1 - share) / 2000) ** 0.5
    assert found.interval.low < share < found.interval.high
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.15)
    assert classification(*drawn(images=2000)).interval == found.interval
    assert classification(*drawn(images=2000), seed=1).interval != found.interval


def test_classes_without_images_are_left_out_of_the_means_and_have_no_accuracy():
    logits, labels = drawn(classes=5)
    kept = labels != 3
    logits, labels = logits[kept], labels[kept]
    found = classification(logits, labels)
    present = [0, 1, 2, 4]
    expected = f1_score(labels, logits.argmax(1), average="macro", labels=present)
    assert found.f1 == pytest.approx(expected)
    assert found.per_class[3] is None
    assert found.support[3] == 0


def test_a_model_that_is_always_right_or_always_wrong_has_no_gap():
    logits = 50 * torch.eye(4, dtype=torch.float64)
    right = classification(logits, torch.arange(4))
    wrong = classification(logits, torch.tensor([1, 2, 3, 0]))
    assert (right.confidence_wrong, right.gap, right.calibration_error) == (None, None, 0)
    assert (wrong.confidence_right, wrong.gap) == (None, None)
    assert wrong.calibration_error == pytest.approx(1)
    assert wrong.f1 == 0


def test_logits_so_large_that_probabilities_vanish_have_a_finite_entropy():
    logits = torch.tensor([[2000.0, 0.0], [0.0, -3000.0]])
    found = classification(logits, torch.tensor([0, 0]))
    assert (found.entropy, found.confidence) == (0, 1)


def test_logits_in_half_precision_are_summed_in_double():
    logits, labels = drawn()
    half = classification(logits.bfloat16(), labels)
    assert half.confidence == pytest.approx(classification(logits, labels).confidence, abs=2e-3)


def test_bad_input_is_refused_with_the_remedy():
    logits, labels = drawn(images=5)
    for call, message in (
        (lambda: classification(logits[:0], labels[:0]), "no images"),
        (lambda: classification(logits, labels + 7), "out of range"),
        (lambda: classification(logits / 0, labels), "NaN or infinity"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            call()


def test_tied_logits_count_alike_for_accuracy_and_for_what_is_right():
    for classes in (3, 6, 30, 100):
        labels = torch.arange(classes)
        found = classification(torch.zeros(classes, classes), labels)
        assert found.right.mean() == pytest.approx(found.accuracy.top1)
        labels = torch.full((4,), int(np.flatnonzero(found.right)[0]))
        again = classification(torch.zeros(4, classes), labels)
        assert again.accuracy.top1 == again.recall == 1.0
