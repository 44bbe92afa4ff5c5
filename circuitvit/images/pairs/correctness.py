"""Which images a model gets right, asked about no more images than it takes to draw some."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import CircuitError, reason_of
from circuitvit.images.image_set import ImageSet
from circuitvit.torch_modes import default_modes

Model: TypeAlias = Callable[[Tensor], Tensor]
"""From images [image channel height width] to logits [image class]."""

IMAGES_AT_ONCE = 64
UNKNOWN, WRONG, RIGHT = -1, 0, 1


class Judge:
    """Knows of some images whether a model gets them right, and finds out about others.

    Args:
        images: the images and their classes.
        right_for: a callable from images to logits, which runs without gradients and in the mode
            that it is in, or a mask with one truth value an image. None counts all as right.

    Raises:
        CircuitError: it is neither, or the images are no ImageSet.
    """

    def __init__(self, images: ImageSet, right_for: object = None) -> None:
        if not isinstance(images, ImageSet):
            raise CircuitError(
                f"images are a {type(images).__name__}, expected an ImageSet(images, labels, "
                "class_names), such as load_splits(...).train."
            )
        self._images = images
        self._model: Model | None = None
        self._known = np.full(len(images), UNKNOWN, np.int8)
        self.name: str | None = None
        if right_for is None:
            self._known[:] = RIGHT
        elif isinstance(right_for, Tensor | np.ndarray):
            self._known[:] = _checked_mask(right_for, len(images))
            self.name = "a mask"
        elif callable(right_for):
            self._model = right_for  # pyright: ignore[reportAttributeAccessIssue]
            self.name = _name_of(right_for)
        else:
            raise CircuitError(
                f"right_for is a {type(right_for).__name__}, expected a model (a callable from "
                "images to logits), or a mask with one truth value an image."
            )

    @classmethod
    def of(cls, images: ImageSet, right_for: object) -> "Judge":
        """A judge of these images; one that is given is asked on, with all that it knows.

        Raises:
            CircuitError: `right_for` can't judge.
        """
        if isinstance(right_for, cls) and right_for._images is images:
            return right_for
        return cls(images, right_for)

    @property
    def is_asked(self) -> bool:
        """Whether anything was given to judge by."""
        return self.name is not None

    @property
    def wrong(self) -> np.ndarray:
        """Of every image, whether it is known to be wrong."""
        return self._known == WRONG

    def is_right(self, places: np.ndarray) -> np.ndarray:
        """Of some images, whether the model gets them right; those not yet known are run.

        Raises:
            CircuitError: the model doesn't give logits that fit.
        """
        unknown = np.unique(places[self._known[places] == UNKNOWN])
        for start in range(0, len(unknown), IMAGES_AT_ONCE):
            chunk = unknown[start : start + IMAGES_AT_ONCE]
            own = self._images.labels[chunk].cpu()
            self._known[chunk] = (self._logits(chunk).argmax(dim=-1) == own).numpy()
        return self._known[places] == RIGHT

    def runners_up(self, places: np.ndarray) -> np.ndarray | None:
        """The class beside the right one that the model holds likeliest; None without a model."""
        if self._model is None:
            return None
        found = list[np.ndarray]()
        for start in range(0, len(places), IMAGES_AT_ONCE):
            chunk = places[start : start + IMAGES_AT_ONCE]
            own = self._images.labels[chunk].cpu()
            others = self._logits(chunk).scatter(1, own[:, None], -torch.inf)
            found.append(others.argmax(dim=-1).numpy())
        return np.concatenate(found)

    def _logits(self, places: np.ndarray) -> Float[Tensor, "image class"]:
        assert self._model is not None
        batch = self._images.images[places]
        if isinstance(self._model, nn.Module):
            weights = next(self._model.parameters(), batch)
            batch = batch.to(weights.device, weights.dtype)
        try:
            with default_modes(gradients=False):
                logits = self._model(batch)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as cause:
            if isinstance(cause, CircuitError):
                raise
            raise CircuitError(
                f"right_for can't look at images of shape {tuple(batch.shape)}: "
                f"{reason_of(cause)}. Give a model that takes such images and returns logits, or "
                "load the images for it: load_splits(..., model=...)."
            ) from cause
        self._check(logits, len(places))
        return logits.cpu()

    def _check(self, logits: object, count: int) -> None:
        needed = max(int(self._images.labels.max()) + 1, 2)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
            kind = type(logits).__name__
            got = tuple(logits.shape) if isinstance(logits, Tensor) else kind
            raise CircuitError(
                f"right_for gave {got} for {count} images, expected logits [image class]. Give a "
                "function that returns them, such as lambda x: model(x).logits."
            )
        if logits.shape[1] < needed:
            raise CircuitError(
                f"right_for gave logits of {logits.shape[1]} classes, but the images' labels need "
                f"{needed}. Give a model of these classes, with the labels in its order."
            )
        if not bool(torch.isfinite(logits).all()):
            raise CircuitError("right_for gave logits that are NaN or infinite.")


def _checked_mask(mask: Tensor | np.ndarray, count: int) -> np.ndarray:
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if values.dtype != np.bool_ or values.shape != (count,):
        raise CircuitError(
            f"right_for is a mask of {mask.dtype} and shape {tuple(values.shape)}, expected "
            f"{count} truth values, one an image."
        )
    return values


def _name_of(model: object) -> str:
    """What a recipe says of the model: its fingerprint if it has one."""
    digest = getattr(model, "fingerprint", None)
    if callable(digest):
        return f"{type(model).__name__} {digest()}"
    return getattr(model, "__name__", type(model).__name__)
