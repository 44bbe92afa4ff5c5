"""The accuracy of a classifier on labelled images.

Beside accuracy: balance over classes, confidence, calibration. Precision, recall and F1 are
scikit-learn's. Calibration is that of Guo et al. 2017 (arXiv 1706.04599): how far the highest
probability is from the share of right answers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.measure.bootstrap import KnownEstimate, resampled_means
from circuitvit.torch_modes import HALF, evaluating, in_default_modes

IMAGES_AT_ONCE = 256
NO_IMAGES = "there are no images to look at. Give at least one."


@dataclass(frozen=True)
class Accuracy:
    """Shares are in 0–1.

    Attributes:
        top1: share of images whose best logit is their class.
        top5: share whose class is among the five best logits; None with five classes or fewer.
        loss: mean cross-entropy, in nats.
        images: how many were looked at.
    """

    top1: float
    top5: float | None
    loss: float
    images: int


@in_default_modes
def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
) -> Accuracy:
    """Top-1, top-5 and cross-entropy of a model in eval mode; its own mode is put back.

    Raises:
        CircuitError: there are no images, not as many labels, or a label is out of range.
    """
    labels = checked_labels(labels, images)
    return accuracy_of(all_logits(model, images), labels)


def accuracy_of(logits: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Accuracy:
    """Top-1, top-5 and cross-entropy of logits.

    Raises:
        CircuitError: there are none, they are not finite, or a label is out of range.
    """
    return accuracy_and_guesses(logits, labels)[0]


def accuracy_and_guesses(
    logits: Float[Tensor, "image class"], labels: Int[Tensor, " image"]
) -> tuple[Accuracy, Int[Tensor, " image"]]:
    """`accuracy_of`, and each image's best class, by which top-1 was counted.

    Raises:
        CircuitError: as `accuracy_of`.
    """
    if not len(logits):
        raise CircuitError(NO_IMAGES)
    if not bool(torch.isfinite(logits).all()):
        raise CircuitError(
            "the logits hold NaN or infinity. Look at the model's weights and at how the images "
            "were normalised."
        )
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CircuitError(
            f"labels are out of range: they go from {int(labels.min())} to {int(labels.max())}, "
            f"the model has {classes} classes, expected 0 to {classes - 1}."
        )
    labels = labels.to(logits.device)
    ranked = logits.topk(min(5, classes)).indices
    hits = ranked == labels[:, None]
    found = Accuracy(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(dim=1).double().mean().item() if classes > 5 else None,
        loss=F.cross_entropy(logits.double(), labels).item(),
        images=len(logits),
    )
    return found, ranked[:, 0]


def all_logits(model: nn.Module, images: Tensor) -> Float[Tensor, "image class"]:
    """The logits of all images, a batch at a time, in eval mode."""
    if not len(images):
        raise CircuitError(NO_IMAGES)
    images = as_computed(images, model)
    with evaluating(model), torch.inference_mode():
        return torch.cat([model(chunk) for chunk in images.split(IMAGES_AT_ONCE)])


def as_computed(images: Tensor, model: nn.Module) -> Tensor:
    """The images in the model's precision where either is half, so that models stand together."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    return images.to(dtype) if {dtype, images.dtype} & {*HALF} else images


def checked_labels(labels: object, images: object) -> Int[Tensor, " image"]:
    """The labels of the images, whatever whole numbers they were given as.

    Raises:
        CircuitError: they are something else, or not as many.
    """
    if not isinstance(images, Tensor):
        raise CircuitError(f"images are a {type(images).__name__}, expected a tensor.")
    labels = torch.as_tensor(labels)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not whole:
        raise CircuitError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected whole numbers "
            "[image]."
        )
    if len(labels) != len(images):
        raise CircuitError(f"got {len(images)} images and {len(labels)} labels, expected as many.")
    return labels.long()


BINS = 15
"""As many bins of confidence as Guo et al. use."""

RESAMPLES = 1000
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in one of `BINS` equal parts of 0–1.

    Attributes:
        confidence: their mean confidence; None without images.
        accuracy: the share of them that is right; None without images.
        images: how many.
    """

    confidence: float | None
    accuracy: float | None
    images: int

    def __post_init__(self) -> None:
        if self.images < 0:
            raise CircuitError(f"a bin has {self.images} images, expected 0 or more.")


@dataclass(frozen=True)
class Classification:
    """The classification by a model; shares and confidences are in 0–1.

    Means over classes ("macro") weigh the classes that have images alike.

    Attributes:
        accuracy: top-1, top-5 and loss.
        interval: top-1 with its 95% bootstrap interval over images.
        precision: mean over classes; a class that is never predicted counts as 0.
        recall: mean over classes, also called balanced accuracy.
        f1: mean over classes of the harmonic mean of both.
        per_class: by class, the share of its images that is right; None for one without images.
        support: by class, how many images it has.
        confidence: mean of the highest probability.
        confidence_right: the same over images that were got right; None if there are none.
        confidence_wrong: over those that were not.
        entropy: mean entropy of the probabilities, in nats.
        calibration_error: expected calibration error over `bins`, 0 is best.
        bins: for a reliability diagram.
        right: by image, whether the best logit is its class.
    """

    accuracy: Accuracy
    interval: KnownEstimate
    precision: float
    recall: float
    f1: float
    per_class: tuple[float | None, ...]
    support: tuple[int, ...]
    confidence: float
    confidence_right: float | None
    confidence_wrong: float | None
    entropy: float
    calibration_error: float
    bins: tuple[Bin, ...]
    right: Bool[np.ndarray, " image"]

    @property
    def gap(self) -> float | None:
        """How much surer it is when right than when wrong; None unless it is both at times."""
        if self.confidence_right is None or self.confidence_wrong is None:
            return None
        return self.confidence_right - self.confidence_wrong


def classification(
    logits: Float[Tensor, "image class"], labels: Int[Tensor, " image"], *, seed: int = 0
) -> Classification:
    """All figures of a classifier from one pass over labelled images.

    Args:
        logits: of every image.
        labels: 0 to classes − 1.
        seed: draws the bootstrap samples of the interval.

    Raises:
        CircuitError: there are no images, the logits aren't finite or a label is out of range.
    """
    from sklearn.metrics import precision_recall_fscore_support

    found, best = accuracy_and_guesses(logits, labels)
    logits, truth, guessed = logits.detach().cpu(), labels.cpu().numpy(), best.cpu().numpy()
    confidence, entropy = _confidence(logits)
    right = guessed == truth
    support = np.bincount(truth, minlength=logits.shape[1])
    hits = np.bincount(truth[right], minlength=logits.shape[1])
    present: Any = {"labels": np.flatnonzero(support), "average": "macro", "zero_division": 0}
    means = precision_recall_fscore_support(truth, guessed, **present)
    bins = _bins(confidence, right)
    samples = resampled_means(right[None].astype(float), resamples=RESAMPLES, seed=seed)
    return Classification(
        accuracy=found,
        interval=KnownEstimate.of(found.top1, samples[:, 0]),
        precision=float(means[0]),
        recall=float(means[1]),
        f1=float(means[2]),
        per_class=tuple(
            float(hit / count) if count else None
            for hit, count in zip(hits, support, strict=True)
        ),
        support=tuple(map(int, support)),
        confidence=float(confidence.mean()),
        confidence_right=_mean(confidence[right]),
        confidence_wrong=_mean(confidence[~right]),
        entropy=entropy,
        calibration_error=_calibration_error(bins),
        bins=bins,
        right=right,
    )  # fmt: skip


def _confidence(
    logits: Float[Tensor, "image class"],
) -> tuple[Float[np.ndarray, " image"], float]:
    """The highest probability of each image, and the mean entropy; in chunks, in double."""
    most, total = [], 0.0
    for chunk in logits.split(ROWS_AT_ONCE):
        logs = chunk.double().log_softmax(dim=1)
        shares = logs.exp()
        most.append(shares.amax(dim=1))
        total -= torch.where(shares > 0, shares * logs, 0.0).sum().item()
    return torch.cat(most).numpy(), total / len(logits)


def _bins(
    confidence: Float[np.ndarray, " image"], right: Bool[np.ndarray, " image"]
) -> tuple[Bin, ...]:
    """Bin b holds confidences in (b / 15, (b + 1) / 15]."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    place = np.searchsorted(edges, confidence, side="left")
    return tuple(
        Bin(
            _mean(confidence[place == b]), _mean(right[place == b]), int((place == b).sum())
        )
        for b in range(BINS)
    )  # fmt: skip


def _calibration_error(bins: tuple[Bin, ...]) -> float:
    images = sum(item.images for item in bins)
    return sum(
        item.images / images * abs(item.accuracy - item.confidence)
        for item in bins
        if item.accuracy is not None and item.confidence is not None
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
