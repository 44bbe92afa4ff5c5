"""The loss of a training, with knowledge distillation (Hinton et al. 2015) from a teacher."""

import hashlib
import json
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.images import ImageSet
from circuitvit.plain_weights import few, plain_copy
from circuitvit.torch_modes import in_single
from circuitvit.train.recipe import Recipe


class Teacher:
    """A copy of a module from images to logits, without gradients.

    Args:
        module: from images to logits [image class], or to an output with `logits`, as in
            transformers. It is not changed.
        like: images whose device and dtype the copy gets.
    """

    def __init__(self, module: nn.Module, like: Tensor) -> None:
        self.module = plain_copy(module)[0].to(like.device, like.dtype)

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "image channel height width"]) -> Any:
        """The teacher's logits; whatever it returns, if that has none."""
        output = self.module(images)
        return getattr(output, "logits", output)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over class name and weights."""
        digest = hashlib.sha256(type(self.module).__name__.encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def config(self) -> dict[str, Any]:
        """Its config as JSON values; empty if it has none.

        Origin and dtype in a config of transformers are left out: they don't change the function.
        """
        config = getattr(self.module, "config", None)
        as_dict = getattr(config, "as_dict", None) or getattr(config, "to_dict", None)
        values: Any = as_dict() if callable(as_dict) else {}
        kept = {n: v for n, v in values.items() if not n.startswith("_") and n not in _ORIGIN}
        return json.loads(json.dumps(kept, default=str))


_ORIGIN = {"architectures", "dtype", "torch_dtype", "transformers_version"}


def teacher_problems(module: Any, images: ImageSet, classes: int) -> list[str]:
    """Why a module can't be the teacher of a model with this number of classes, a line a reason."""
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        return [f"the teacher is a {kind}, expected a module; load_vit makes one of a name"]
    problems = []
    own, theirs = getattr(module, "preprocessing", None), images.preprocessing
    if own is not None and theirs is not None and (own.mean, own.std) != (theirs.mean, theirs.std):
        problems.append(
            f"the teacher takes images normalised with mean {own.mean} and deviation {own.std}, "
            f"these have {theirs.mean} and {theirs.std}; make the images with the teacher's "
            "preprocessing"
        )
    names = getattr(own, "class_names", None)
    if names is not None and names != images.class_names:
        problems.append(
            f"the teacher has other classes ({few(names)}) than the images "
            f"({few(images.class_names)}); use a teacher that was trained on the same ones"
        )
    try:
        logits = Teacher(module, images.images[:0]).logits(images.images[:1])
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as cause:
        return [*problems, f"the teacher can't process the training images ({cause})"]
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, classes):
        problems.append(
            f"the teacher returns {shape} for one image, expected logits (1, {classes}) of the "
            f"{classes} classes that the model has; use a teacher with these classes"
        )
    return problems


def training_loss(
    logits: Float[Tensor, "image class"],
    targets: Tensor,
    teacher_logits: Float[Tensor, "image class"] | None,
    recipe: Recipe,
) -> Float[Tensor, ""]:
    """The mean cross-entropy over images; with a teacher, α · CE + (1 − α) · T² · KL.

    KL is KL(softmax(teacher / T) ‖ softmax(student / T)). Logits in half precision are converted
    to single precision first.
    """
    logits = in_single(logits)
    loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if teacher_logits is None:
        return loss
    alpha, temperature = recipe.distill_alpha, recipe.distill_temperature
    both = logits, in_single(teacher_logits)
    student, teacher = (x.div(temperature).log_softmax(dim=1) for x in both)
    distance = F.kl_div(student, teacher.to(student), reduction="batchmean", log_target=True)
    return alpha * loss + (1 - alpha) * temperature**2 * distance
