"""Checks, selects, samples and fingerprints tensors of images."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.preprocessing import Preprocessing

Indices = slice | Sequence[int] | Int[Tensor, " chosen"] | Bool[Tensor, " image"] | np.ndarray
"""Which images: a slice, whole numbers (negative ones count from the end), or a mask."""


def unnormalised(
    images: Float[Tensor, "*image channel height width"], seen: Preprocessing
) -> Float[Tensor, "*image channel height width"]:
    """The pixels in [0, 1] that images were before they were normalised, in single precision."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        for values in (seen.mean, seen.std)
    )
    return images.float() * std + mean


def as_bytes(
    images: Float[Tensor, "*image channel height width"], seen: Preprocessing
) -> UInt8[Tensor, "*image channel height width"]:
    """The bytes that images were before they were normalised; exact where they were such."""
    return unnormalised(images, seen).mul(255).round().clamp(0, 255).to(torch.uint8)


def fingerprint(*tensors: Tensor | None) -> str:
    """16 hexadecimal digits that name the shapes, dtypes and bytes of tensors, None included."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"None;")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        # Bytes, because numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def positions_of(indices: Any, count: int) -> Int[Tensor, " chosen"]:
    """The places, 0 to `count` − 1, that `Indices` name among `count` images.

    Raises:
        CircuitError: a place doesn't exist, or a mask has another length.
    """
    if isinstance(indices, slice):
        return torch.arange(count, device="cpu")[indices]
    places = torch.as_tensor(indices, device="cpu")
    if places.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    if places.dtype == torch.bool and places.shape == (count,):
        return places.nonzero()[:, 0]
    fits = places.ndim == 1 and not places.is_floating_point() and places.dtype != torch.bool
    if not fits or int(places.min()) < -count or int(places.max()) >= count:
        raise CircuitError(
            f"these indices don't fit {count} images: got {places.dtype} of shape "
            f"{tuple(places.shape)} from {places.min()} to {places.max()}. Give a slice, whole "
            f"numbers below {count}, or a mask with one truth value an image."
        )
    return places.long() % count


def image_problems(name: str, images: object) -> Iterator[str]:
    """The reasons why `images` is not a batch of pictures, one sentence each."""
    if not isinstance(images, Tensor):
        yield f"{name} is a {type(images).__name__}, expected a tensor"
        return
    if images.ndim != 4:
        yield (
            f"{name} has shape {tuple(images.shape)}, expected 4 axes "
            "[image, channel, height, width]; add the missing ones"
        )
    elif len(images) == 0:
        yield f"{name} holds no image, expected at least 1"
    if not images.is_floating_point():
        yield f"{name} has dtype {images.dtype}, expected floating point; use .float() and scale it"
    elif not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images)).sum())
        yield f"{name} has {bad} values that are NaN or infinite; clean the images first"


def label_problems(
    name: str, labels: object, count: int | None, classes: int | None = None
) -> Iterator[str]:
    """The reasons why `labels` are not the classes of `count` images, one sentence each."""
    if not isinstance(labels, Tensor):
        yield f"{name} is a {type(labels).__name__}, expected a tensor"
        return
    if count is not None and labels.shape != (count,):
        yield f"{name} has shape {tuple(labels.shape)}, expected ({count},), one label an image"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        yield f"{name} has dtype {labels.dtype}, expected whole numbers; use .long()"
    elif labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (classes is not None and high >= classes):
            most = "" if classes is None else f" and below {classes}"
            yield f"{name} goes from {low} to {high}, expected classes from 0{most}"


MOST_SEED = 2**128
"""Beyond it, seeds are too long for a file of JSON."""

Places = np.ndarray
"""Positions of images in their table, int64."""


def stratified(labels: np.ndarray, sizes: tuple[int, ...], seed: int) -> tuple[Places, ...]:
    """Cut images into parts of given sizes, each class in proportion; what is left comes last.

    Each class is shuffled and its images spread evenly over [0, 1); going up from 0, the first
    `sizes[0]` images are the first part, and so on. So no class is off its share by more than one
    image in a part, and the sizes are exact.

    Args:
        labels: the class of each image [image].
        sizes: number of images of each part, together at most all of them.
        seed: draws the order within the classes.
    """
    order, ranks, counts = _ranked(labels, seed)
    spread = order[np.lexsort((order, (ranks + 0.5) / counts))]
    return tuple(np.sort(part) for part in np.split(spread, np.cumsum(sizes)))


def balanced(labels: np.ndarray, count: int, seed: int) -> Places:
    """Draw `count` images without replacement, as evenly over the classes as there are images.

    The classes take turns, in an order drawn once: any head of the result is balanced as well.
    """
    order, ranks, _ = _ranked(labels, seed)
    turns = np.random.default_rng([seed, 1]).permutation(int(labels.max()) + 1)
    return order[np.lexsort((turns[labels[order]], ranks))][:count]


def _ranked(labels: np.ndarray, seed: int) -> tuple[Places, np.ndarray, np.ndarray]:
    """Images in a drawn order, each one's rank within its class, and its class's size."""
    if seed < 0:
        raise CircuitError(f"seed is {seed}, expected a whole number ≥ 0.")
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    return order, ranks_of(labels[order]), np.bincount(labels)[labels[order]]


def ranks_of(labels: np.ndarray) -> np.ndarray:
    """The number of images of the same class before each image."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
