"""Random changes of single pictures, by torchvision: resized crop, RandAugment, noise, erasing.

Crops and RandAugment (Cubuk et al. 2020) work on pictures of 8 bits: the normalisation is undone
before and done again after. Noise and erasing come last, on the normalised images.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.images.tensor_checks import as_bytes
from circuitvit.preprocessing import Preprocessing
from circuitvit.torchvision_ops import register_missing_ops
from circuitvit.train.recipe import Recipe
from circuitvit.train.seeds import Purpose, own_generator, seed_of

Images = Float[Tensor, "image channel height width"]
Places = Int[Tensor, " image"]


def retouched(
    images: Images,
    places: Places,
    recipe: Recipe,
    epoch: int,
    preprocessing: Preprocessing | None,
) -> Images:
    """The images, each cropped and changed by its own draw; on the CPU.

    Args:
        images: normalised.
        places: where each stands in the epoch's order.
        recipe: how much they change.
        epoch: from 0.
        preprocessing: how they were normalised; without it they are cropped as they are.
    """
    change = _transform(images, recipe, preprocessing)
    if change is None:
        return images
    pictures = images if preprocessing is None else as_bytes(images, preprocessing)
    results = []
    with own_generator() as generator:
        for picture, place in zip(pictures, places.tolist(), strict=True):
            generator.manual_seed(seed_of(recipe.seed, epoch, place, Purpose.PICTURE))
            results.append(change(picture))
    changed = torch.stack(results)
    if preprocessing is None:
        return changed
    mean, std = _statistics(preprocessing, images)
    return (changed.to(images.dtype) / 255 - mean) / std


def disturbed(
    images: Images,
    places: Places,
    recipe: Recipe,
    epoch: int,
    preprocessing: Preprocessing | None,
) -> Images:
    """The images with noise, and some with a rectangle of mean colour; on whatever device.

    The deviation of the noise is in units of pixels in [0, 1], or of `images` without
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
    results = []
    with own_generator() as generator:
        for image, place in zip(images, places.tolist(), strict=True):
            generator.manual_seed(seed_of(recipe.seed, epoch, place, Purpose.DISTURBANCE))
            noise = recipe.noise * scale * torch.randn(image.shape)
            results.append(erase(image + noise.to(image)))
    return torch.stack(results)


def _transform(
    images: Images, recipe: Recipe, preprocessing: Preprocessing | None
) -> Callable[[Tensor], Tensor] | None:
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


def _statistics(preprocessing: Preprocessing, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return mean.to(like).view(-1, 1, 1), std.to(like).view(-1, 1, 1)
