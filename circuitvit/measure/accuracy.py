"""How well a classifier does on labelled images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import CircuitError

IMAGES_AT_ONCE = 256


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


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
) -> Accuracy:
    """Top-1, top-5 and cross-entropy of a model in eval mode; its own mode is put back.

    Raises:
        CircuitError: there are no images, not as many labels, or a label is out of range.
    """
    logits = all_logits(model, images)
    if len(labels) != len(images):
        raise CircuitError(f"got {len(images)} images and {len(labels)} labels, expected as many.")
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CircuitError(
            f"labels are out of range: they go from {int(labels.min())} to {int(labels.max())}, "
            f"the model has {classes} classes, expected 0 to {classes - 1}."
        )
    labels = labels.to(logits.device)
    hits = logits.topk(min(5, classes)).indices == labels[:, None]
    return Accuracy(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(dim=1).double().mean().item() if classes > 5 else None,
        loss=F.cross_entropy(logits.double(), labels).item(),
        images=len(images),
    )


def all_logits(model: nn.Module, images: Tensor) -> Float[Tensor, "image class"]:
    """The logits of all images, a batch at a time, in eval mode."""
    if not len(images):
        raise CircuitError("there are no images to look at. Give at least one.")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return torch.cat([model(chunk) for chunk in images.split(IMAGES_AT_ONCE)])
    finally:
        model.train(was_training)
