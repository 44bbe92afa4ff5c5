"""Corrupt images that are made from the clean ones: a patch filled in or blurred, noise, the mean.

Each image is worked on by itself, and what is drawn for it depends on the seed and on its place in
the image set alone, so that some of the pairs are the same as all of them, cut.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import is_number, is_whole
from circuitvit.errors import CircuitError, in_short
from circuitvit.torchvision_ops import register_missing_ops

Fill = Literal["inpaint", "blur"]
MOST_NOISE = 1e6
"""The largest deviation of noise: beyond it nothing of the image is left, nor of half precision."""


@dataclass(frozen=True)
class Patch:
    """Where a square patch lies in an image and what becomes of it; make it with `checked`.

    Attributes:
        fill: what becomes of it.
        size: its side, in pixels.
        place: its first row and column; None draws them for each image.
        align: what both are multiples of, in pixels.
    """

    fill: Fill
    size: int
    place: tuple[int, int] | None
    align: int

    @classmethod
    def checked(
        cls, fill: str, size: int | float, place: Any, align: Any, *, height: int, width: int
    ) -> "Patch":
        """Convert the requested size and place to pixels.

        Raises:
            CircuitError: the patch doesn't fit the images; every problem is named.
        """
        side, problems = min(height, width), list[str]()
        if fill not in get_args(Fill):
            problems.append(f"fill is {in_short(fill)}, expected one of {get_args(Fill)}")
        step = 1 if align is None else align
        if not is_whole(step) or not 1 <= step < side:
            problems.append(
                f"align is {in_short(align)}, expected the patch size of a model below {side}"
            )
            step = 1
        pixels = _pixels(size, side, int(step))
        if pixels is None or not 1 <= pixels < side:
            problems.append(
                f"size is {in_short(size)}, expected 1 to {side - 1} pixels of an image of "
                f"{height}×{width}, or a share of its side above 0 and below 1"
            )
        elif pixels % step:
            problems.append(f"size is {size}, expected a multiple of align={step}")
        if place is not None and not _fits(place, pixels or 1, int(step), height, width):
            problems.append(
                f"place is {in_short(place)}, expected (row, column) of the patch's first pixel, "
                f"such that a patch of {pixels} pixels lies in {height}×{width}"
                + (f", both multiples of align={step}" if step != 1 else "")
            )
        if problems:
            raise CircuitError("this patch can't be used: " + "; ".join(problems) + ".")
        where = None if place is None else (int(place[0]), int(place[1]))
        return cls(fill, int(pixels or 1), where, int(step))  # pyright: ignore[reportArgumentType]

    def corner(self, height: int, width: int, seed: int, index: int) -> tuple[int, int]:
        """Its first row and column in the image that is at `index` in its set."""
        if self.place is not None:
            return self.place
        draw = np.random.default_rng([seed, 3, index])
        rows = (height - self.size) // self.align + 1
        columns = (width - self.size) // self.align + 1
        return int(draw.integers(rows)) * self.align, int(draw.integers(columns)) * self.align

    def applied(
        self, image: Float[Tensor, "channel height width"], corner: tuple[int, int]
    ) -> Float[Tensor, "channel height width"]:
        """The image with the patch filled in or blurred; all other pixels stay as they are."""
        fill = inpainted if self.fill == "inpaint" else blurred
        return fill(image, corner, self.size)


def inpainted(
    image: Float[Tensor, "channel height width"], corner: tuple[int, int], size: int
) -> Float[Tensor, "channel height width"]:
    """Fill a square patch smoothly from the pixels around it.

    Each pixel becomes the mean of its neighbours (Laplace's equation, discrete), solved exactly by
    diagonalising along rows and columns. Past the edge of the image there are no neighbours.
    """
    rows, columns = slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size)
    exact = image.detach().double()
    around = torch.zeros_like(exact[:, rows, columns])
    ends = (rows.start > 0, rows.stop < image.shape[1])
    sides = (columns.start > 0, columns.stop < image.shape[2])
    if ends[0]:
        around[:, 0] += exact[:, rows.start - 1, columns]
    if ends[1]:
        around[:, -1] += exact[:, rows.stop, columns]
    if sides[0]:
        around[:, :, 0] += exact[:, rows, columns.start - 1]
    if sides[1]:
        around[:, :, -1] += exact[:, rows, columns.stop]
    (down, up), (across, along) = (_modes(size, *e, exact.device) for e in (ends, sides))
    modes = up.T @ around @ along / (down[:, None] + across)
    filled = image.detach().clone()
    filled[:, rows, columns] = (up @ modes @ along.T).to(image.dtype)
    return filled


def _modes(size: int, first: bool, last: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of the second difference; an end counts if a pixel is past it."""
    second = 2 * torch.eye(size, dtype=torch.float64, device=device)
    second -= torch.diag(torch.ones(size - 1, dtype=torch.float64, device=device), 1)
    second -= torch.diag(torch.ones(size - 1, dtype=torch.float64, device=device), -1)
    second[0, 0] -= float(not first)
    second[-1, -1] -= float(not last)
    values, vectors = torch.linalg.eigh(second)
    return values, vectors


def blurred(
    image: Float[Tensor, "channel height width"], corner: tuple[int, int], size: int
) -> Float[Tensor, "channel height width"]:
    """Blur a square patch by a Gaussian with σ of a quarter of its side."""
    register_missing_ops()
    from torchvision.transforms.v2.functional import gaussian_blur

    rows, columns = slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size)
    sigma = size / 4
    reach = min(math.ceil(3 * sigma), min(image.shape[1:]) - 1)
    soft = gaussian_blur(image.detach(), [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
    filled = image.detach().clone()
    filled[:, rows, columns] = soft[:, rows, columns]
    return filled


def noisy(
    image: Float[Tensor, "channel height width"], std: float, seed: int, index: int
) -> Float[Tensor, "channel height width"]:
    """Add Gaussian noise to the image that is at `index` in its set."""
    drawn = np.random.default_rng([seed, 4, index]).standard_normal(tuple(image.shape))
    noise = torch.from_numpy(drawn).to(image.device)
    return (image.detach().double() + std * noise).to(image.dtype)


def is_noise(std: object) -> bool:
    """Whether a value is a deviation of noise."""
    number: Any = std
    return is_number(number) and 0 < number <= MOST_NOISE


def mean_image(
    images: Float[Tensor, "image channel height width"],
) -> Float[Tensor, "channel height width"]:
    """The mean of all images, added up in double precision."""
    return images.detach().mean(dim=0, dtype=torch.float64).to(images.dtype)


def _pixels(size: Any, side: int, step: int) -> int | None:
    """A size in pixels; a share of the side goes to the nearest multiple of `step` that fits."""
    if is_whole(size):
        return int(size)
    if isinstance(size, float | np.floating) and 0 < size < 1:
        return min(max(1, round(float(size) * side / step)), (side - 1) // step) * step
    return None


def _fits(place: Any, size: int, step: int, height: int, width: int) -> bool:
    if not isinstance(place, tuple | list) or len(place) != 2 or not all(map(is_whole, place)):
        return False
    inside = 0 <= place[0] <= height - size and 0 <= place[1] <= width - size
    return inside and place[0] % step == place[1] % step == 0
