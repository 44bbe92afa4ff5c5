"""Small random moves of images: each image its own, a whole batch in one operation.

torchvision's `RandomAffine` draws one move for each call, so a batch would move as one, and calling
it image by image would take most of the training time of a small model. Instead every image gets
its own affine matrix, and `grid_sample` applies them together; a test compares the result with
torchvision's. Crops and colours are in `pictures`, MixUp and CutMix in `mixing`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitvit.train.recipe import Recipe


def random_moves(
    count: int, side: int, recipe: Recipe, generator: torch.Generator
) -> Float[Tensor, "image 2 3"]:
    """An affine matrix for each image: mirrored or not, rotated about the middle, then shifted.

    It leads from where a pixel goes to where its value comes from, in units of half the side.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = torch.deg2rad(recipe.rotate * uniform(count))
    # Whole pixels, so that shifting alone doesn't blur.
    shift = torch.round(recipe.translate * side * uniform(count, 2)) * 2 / side
    mirror = (torch.rand(count, generator=generator) < 0.5) & recipe.horizontal_flip
    return moves(angle, shift, mirror)


def moves(
    angle: Float[Tensor, " image"], shift: Float[Tensor, "image 2"], mirror: Tensor
) -> Float[Tensor, "image 2 3"]:
    """Affine matrices from clockwise angles in radians, shifts in half sides, and mirrorings."""
    cos, sin = angle.cos(), angle.sin()
    back = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    matrices = torch.cat([back, -back @ shift[:, :, None]], dim=-1)
    sign = torch.where(mirror, -1.0, 1.0)
    return matrices * torch.stack([sign, torch.ones_like(sign)], -1)[:, :, None]


def moved(
    images: Float[Tensor, "image channel height width"], matrices: Float[Tensor, "image 2 3"]
) -> Float[Tensor, "image channel height width"]:
    """The images, each moved by its matrix; what comes from outside repeats the border."""
    places = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)
