"""How well a classifier does on labelled images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.precision import HALF
from circuitvit.torch_modes import evaluating, in_default_modes

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
