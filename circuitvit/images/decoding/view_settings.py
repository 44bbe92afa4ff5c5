"""Resolves image size, channels and normalisation from model and arguments."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, no_type_check, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from circuitvit.checks import is_number, is_whole
from circuitvit.errors import CircuitError, in_short, warn
from circuitvit.images.decoding.pixels import Look
from circuitvit.images.image_table import Table
from circuitvit.preprocessing import Preprocessing

_MOST_SIDE = 16_384
"""Pixels of an image: each then takes 3 GiB in a model."""


@runtime_checkable
class Viewer(Protocol):
    """A model as images see it; `ViT` and `CircuitViT` are such.

    Attributes:
        config: has `image_size` and `channels` of the images, and the number of `classes`.
        preprocessing: how pictures become what it looks at; None where that is not known.
    """

    config: Any
    preprocessing: Preprocessing | None


@dataclass(frozen=True)
class Asked:
    """Settings from all sides, settled.

    Attributes:
        preprocessing: how pictures are resized and normalised.
        image_size: side in pixels; None takes pictures as they are.
        channels: 1 (grey) or 3 (RGB); None takes what is natural for the source.
        classes: how many the model has; None without one.
        pixel_range: what is black and white in pictures of more than 8 bits a channel.
        problems: what is wrong, one sentence each.
    """

    preprocessing: Preprocessing
    image_size: int | None
    channels: int | None
    classes: int | None
    pixel_range: tuple[float, float] | None = None
    problems: list[str] = field(default_factory=list)

    def look(self, table: Table) -> Look:
        """The processing of each picture of a table.

        Raises:
            CircuitError: there are means or deviations for other channels.
        """
        chosen, size = self.preprocessing, self.image_size
        channels = self.channels or table.channels
        wrong = {len(values) for values in (chosen.mean, chosen.std)} - {1, channels}
        if wrong:
            raise CircuitError(
                f"the preprocessing has {wrong.pop()} means or deviations, the images {channels} "
                "channels. Give one for each channel, or one for all; or other channels."
            )
        side = None if size is None else chosen.resized_side(size)
        return Look(size, side, channels, chosen.interpolation, chosen.resize, self.pixel_range)

    def normalised(
        self, pixels: Shaped[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """(x − mean) / std of pixels that are bytes, or floats in [0, 1]."""
        scaled = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.clone()
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return scaled.sub_(mean).div_(deviation)


@no_type_check  # it checks its own input, with words for people
def asked_for(
    model: Viewer | None,
    preprocessing: Preprocessing | None,
    image_size: int | None,
    channels: int | None,
    pixel_range: Any = None,
) -> Asked:
    """Resolve the settings of a model and the arguments; contradictions go into `problems`."""
    problems = []
    shape = getattr(model, "config", None)
    if model is not None and not all(hasattr(shape, n) for n in ("image_size", "classes")):
        problems.append(f"model is a {type(model).__name__}, expected a ViT; cv.load_vit makes one")
        model = shape = None
    problems += _size_problems(image_size, channels)
    problems += _range_problems(pixel_range)
    image_size, channels = (int(n) if is_whole(n) else None for n in (image_size, channels))
    for name, asked in (("image_size", image_size), ("channels", channels)):
        own = getattr(shape, name, None)
        if shape is not None and asked not in (None, own):
            problems.append(f"{name} is {asked}, but the model's is {own}; leave it out")
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        problems.append(
            f"preprocessing is a {type(preprocessing).__name__}, expected a cv.Preprocessing"
        )
        preprocessing = None
    known = preprocessing or getattr(model, "preprocessing", None)
    chosen = known or Preprocessing()
    size, depth = getattr(shape, "image_size", image_size), getattr(shape, "channels", channels)
    if shape is not None and depth not in (1, 3):
        problems.append(f"the model takes {depth} channels; only 1 (grey) and 3 (RGB) can be read")
    found = Asked(
        chosen, size, depth, getattr(shape, "classes", None),
        None if pixel_range is None or problems else tuple(map(float, pixel_range)), problems,
    )  # fmt: skip
    _warn_of_guess(model, known, found)
    return found


def _size_problems(image_size: Any, channels: Any) -> Iterator[str]:
    if image_size is not None and not (is_whole(image_size) and 1 <= image_size <= _MOST_SIDE):
        most = f"; at most {_MOST_SIDE}" if is_whole(image_size) and image_size > 1 else ""
        told = in_short(image_size)
        yield f"image_size is {told}, expected at least 1 pixel, a whole number{most}"
    if channels is not None and not (is_whole(channels) and channels in (1, 3)):
        yield f"channels is {in_short(channels)}, expected 1 (grey) or 3 (RGB)"


def _range_problems(pixel_range: Any) -> Iterator[str]:
    if pixel_range is None:
        return
    pair = pixel_range if isinstance(pixel_range, tuple | list) else ()
    try:
        black, white = map(float, pair if all(map(is_number, pair)) else ())
        is_right = black < white and math.isfinite(white - black)
    except (OverflowError, ValueError):  # too large, or not two
        is_right = False
    if not is_right:
        yield (
            f"pixel_range is {in_short(pixel_range)}, expected two numbers, black below white, "
            "such as (0, 65535)"
        )


def _warn_of_guess(model: Viewer | None, known: Preprocessing | None, found: Asked) -> None:
    if model is not None and known is None and not found.problems:
        warn(
            "how this model's images were normalised is not known; mean and std 0.5 are taken. "
            "Give preprocessing=cv.Preprocessing(mean=..., std=...) here or to load_vit.",
        )
