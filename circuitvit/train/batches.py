"""One epoch's batches: the order of the images, their random changes, and MixUp and CutMix.

The changes in the order in which they are applied: crop and RandAugment by torchvision on pictures
of 8 bits, an affine transformation, noise, erasing, MixUp or CutMix. Every draw depends on seed,
epoch and place alone (`seed_of`), so each process makes its own share of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.images import ImageSet
from circuitvit.images.tensor_checks import as_bytes
from circuitvit.preprocessing import Preprocessing
from circuitvit.torchvision_ops import register_missing_ops
from circuitvit.train.recipe import Purpose, Recipe, seed_of


class Batch(NamedTuple):
    """Images and targets of one forward pass.

    The targets are classes [image], or with MixUp or CutMix probabilities [image class].
    """

    images: Float[Tensor, "image channel height width"]
    targets: Tensor


class EpochBatches:
    """The images in the order of one epoch.

    Args:
        images: training images.
        recipe: how they change.
        classes: of the model.
        epoch: from 0.
        device: the batches' device.
    """

    def __init__(
        self, images: ImageSet, recipe: Recipe, classes: int, epoch: int, device: torch.device
    ) -> None:
        self.data, self.recipe, self.epoch = images, recipe, epoch
        self.classes, self.device = classes, device
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, epoch))
        self.order = torch.randperm(len(images), generator=generator)
        self.side = images.images.shape[-1]
        self.affines = (
            random_affines(len(images), self.side, recipe, generator) if recipe.augment else None
        )

    def batch(self, step: int, rows: Int[Tensor, " image"]) -> Batch:
        """Some rows of the global batch of a step.

        With MixUp or CutMix, a row's partner can belong to another process. It is then loaded and
        changed here too, with the same draws.
        """
        mix = Mix.drawn(self.recipe, self.epoch, step, self.side)
        if mix is None:
            return Batch(self._images(step, rows), self._labels(step, rows))
        partners = mix.partner[rows]
        needed, where = torch.unique(torch.cat([rows, partners]), return_inverse=True)
        own, others = where.to(self.device).tensor_split(2)
        images = self._images(step, needed)
        targets = mix.targets(
            self._labels(step, rows), self._labels(step, partners), images, self.classes
        )
        return Batch(mix.images(images[own], images[others]), targets)

    def _places(self, step: int, rows: Int[Tensor, " image"]) -> Int[Tensor, " image"]:
        return step * self.recipe.batch + rows

    def _labels(self, step: int, rows: Int[Tensor, " image"]) -> Int[Tensor, " image"]:
        return self.data.labels[self.order[self._places(step, rows)]].to(self.device)

    def _images(
        self, step: int, rows: Int[Tensor, " image"]
    ) -> Float[Tensor, "image channel height width"]:
        places = self._places(step, rows)
        chosen = self.order[places]
        images = self.data.images[chosen]
        if self.affines is None:
            return images.to(self.device)
        draws = places, self.recipe, self.epoch, self.data.preprocessing
        images = crop_and_randaugment(images, *draws).to(self.device)
        return noise_and_erase(transformed(images, self.affines[chosen]), *draws)


# One affine transformation an image


def random_affines(
    count: int, side: int, recipe: Recipe, generator: torch.Generator
) -> Float[Tensor, "image 2 3"]:
    """An affine matrix for each image: mirrored or not, rotated about the centre, then shifted.

    Shifts are whole pixels, so that shifting alone doesn't blur.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = torch.deg2rad(recipe.rotate * uniform(count))
    shift = torch.round(recipe.translate * side * uniform(count, 2)) * 2 / side
    mirror = (torch.rand(count, generator=generator) < 0.5) & recipe.horizontal_flip
    return affine_matrices(angle, shift, mirror)


def affine_matrices(
    angle: Float[Tensor, " image"], shift: Float[Tensor, "image 2"], mirror: Tensor
) -> Float[Tensor, "image 2 3"]:
    """Affine matrices from clockwise angles in radians, shifts in half sides, and mirrorings.

    A matrix maps a pixel's new position to its old one, in units of half the side.
    """
    cos, sin = angle.cos(), angle.sin()
    back = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    matrices = torch.cat([back, -back @ shift[:, :, None]], dim=-1)
    sign = torch.where(mirror, -1.0, 1.0)
    return matrices * torch.stack([sign, torch.ones_like(sign)], -1)[:, :, None]


def transformed(
    images: Float[Tensor, "image channel height width"], matrices: Float[Tensor, "image 2 3"]
) -> Float[Tensor, "image channel height width"]:
    """Each image transformed by its matrix; pixels from outside repeat the border.

    torchvision's `RandomAffine` draws one transformation a call, and a call an image would take
    most of the training time of a small model. `grid_sample` applies all matrices in one operation.
    """
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# torchvision's changes, image by image


def crop_and_randaugment(
    images: Float[Tensor, "image channel height width"],
    places: Int[Tensor, " image"],
    recipe: Recipe,
    epoch: int,
    preprocessing: Preprocessing | None,
) -> Float[Tensor, "image channel height width"]:
    """The images after a random crop and RandAugment (Cubuk et al. 2020), on the CPU.

    These work on pictures of 8 bits: the normalisation is undone before and done again after.

    Args:
        images: normalised.
        places: place of each image in the epoch's order.
        recipe: how much they change.
        epoch: from 0.
        preprocessing: how they were normalised; without it they are cropped as they are.
    """
    change = _crop_and_randaugment(images, recipe, preprocessing)
    if change is None:
        return images
    pictures = images if preprocessing is None else as_bytes(images, preprocessing)
    purpose = Purpose.CROP_AND_RANDAUGMENT
    changed = _each(pictures, places, lambda i: seed_of(recipe.seed, epoch, i, purpose), change)
    if preprocessing is None:
        return changed
    statistics = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    mean, std = (values.to(images).view(-1, 1, 1) for values in statistics)
    return (changed.to(images.dtype) / 255 - mean) / std


def _crop_and_randaugment(
    images: Float[Tensor, "image channel height width"],
    recipe: Recipe,
    preprocessing: Preprocessing | None,
) -> Callable[[Tensor], Tensor] | None:
    """The transformation of one picture; None where the recipe has neither."""
    if recipe.crop_scale == 1 and not recipe.rand_augment:
        return None
    register_missing_ops()
    from torchvision.transforms import InterpolationMode, v2

    parts: list[Callable[[Tensor], Tensor]] = []
    if recipe.crop_scale < 1:
        height, width = images.shape[2:]
        parts.append(v2.RandomResizedCrop((height, width), scale=(recipe.crop_scale, 1.0)))
    if recipe.rand_augment and preprocessing is not None:
        fill = [255 * float(mean) for mean in preprocessing.mean]
        parts.append(
            v2.RandAugment(
                recipe.rand_augment,
                recipe.rand_augment_magnitude,
                interpolation=InterpolationMode.BILINEAR,
                fill=fill * (images.shape[1] if len(fill) == 1 else 1),
            )
        )
    return v2.Compose(parts)


def noise_and_erase(
    images: Float[Tensor, "image channel height width"],
    places: Int[Tensor, " image"],
    recipe: Recipe,
    epoch: int,
    preprocessing: Preprocessing | None,
) -> Float[Tensor, "image channel height width"]:
    """The images with noise, and some with a rectangle of mean colour, on their own device.

    The standard deviation of the noise is in units of pixels in [0, 1], or of `images` without
    preprocessing.
    """
    if not (recipe.noise or recipe.erase):
        return images
    register_missing_ops()
    from torchvision.transforms import v2

    erase = v2.RandomErasing(p=recipe.erase)
    scale = torch.ones(1, 1, 1)
    if preprocessing is not None:
        scale = 1 / torch.tensor(preprocessing.std).view(-1, 1, 1)

    def change(image: Tensor) -> Tensor:
        noise = recipe.noise * scale * torch.randn(image.shape)
        return erase(image + noise.to(image))

    purpose = Purpose.NOISE_AND_ERASE
    return _each(images, places, lambda i: seed_of(recipe.seed, epoch, i, purpose), change)


def _each(
    images: Tensor,
    places: Int[Tensor, " image"],
    seed: Callable[[int], int],
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """The changed images, each with the seed of its place in the epoch's order.

    torchvision's transforms draw from torch's default CPU generator and take no other. Its state is
    restored at the end.
    """
    state = torch.default_generator.get_state()
    try:
        results = []
        for image, place in zip(images, places.tolist(), strict=True):
            torch.default_generator.manual_seed(seed(place))
            results.append(change(image))
        return torch.stack(results)
    finally:
        torch.default_generator.set_state(state)


# MixUp and CutMix


@dataclass(frozen=True, eq=False)
class Mix:
    """The mixing of one global batch: each image with a partner, and their labels likewise.

    Attributes:
        partner: for each image of the global batch, the place of its partner in it.
        share: of the image's own label, 0–1; the partner's label has the rest.
        box: top, bottom, left and right of what CutMix takes from the partner; None is MixUp.
    """

    partner: Int[Tensor, " image"]
    share: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def drawn(cls, recipe: Recipe, epoch: int, step: int, side: int) -> "Mix | None":
        """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a step, with equal probability.

        One share is drawn for the whole batch, λ ~ Beta(α, α), as in timm. The box of CutMix has
        sides √(1 − λ) of the image's and a uniform centre. What lies outside the image is cut off,
        and the share is that of the remaining pixels. None where the recipe asks for neither.
        """
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(recipe, kind)]
        if not (kinds and recipe.augment):
            return None
        numbers = np.random.default_rng(seed_of(recipe.seed, epoch, step, Purpose.MIX))
        partner = torch.from_numpy(numbers.permutation(recipe.batch))
        kind = kinds[int(numbers.integers(len(kinds)))]
        share = float(numbers.beta(*[getattr(recipe, kind)] * 2))
        if kind == "mixup":
            return cls(partner, share)
        half = side * (1 - share) ** 0.5 / 2
        centre = numbers.integers(0, side, 2)
        low, high = (np.clip(np.round(centre + end * half), 0, side).astype(int) for end in (-1, 1))
        box = (int(low[0]), int(high[0]), int(low[1]), int(high[1]))
        area = (box[1] - box[0]) * (box[3] - box[2])
        return cls(partner, 1 - area / side**2, box)

    def images(
        self,
        own: Float[Tensor, "image channel height width"],
        others: Float[Tensor, "image channel height width"],
    ) -> Float[Tensor, "image channel height width"]:
        """The images, each mixed with its partner, given in the same order."""
        if self.box is None:
            return self.share * own + (1 - self.share) * others
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed

    def targets(
        self, own: Int[Tensor, " image"], others: Int[Tensor, " image"], like: Tensor, classes: int
    ) -> Float[Tensor, "image class"]:
        """Probabilities of the classes, of the dtype of `like`."""
        first, second = (F.one_hot(labels, classes).to(like.dtype) for labels in (own, others))
        return self.share * first + (1 - self.share) * second
