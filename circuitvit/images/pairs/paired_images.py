"""The tensors of image pairs: checked, cut, batched, moved and saved together."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, no_type_check

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from circuitvit.errors import CircuitError, reason_of, warn
from circuitvit.files import readable_path
from circuitvit.files.records import another_kind
from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.images.pairs.recipe import PairRecipe, cast, cut
from circuitvit.images.tensor_checks import (
    Indices,
    fingerprint,
    image_problems,
    label_problems,
    positions_of,
)
from circuitvit.images.thumbnails import stretched, thumbnail, thumbnails_html

Whole = TypeVar("Whole", bound=Any)


class Batches(Generic[Whole]):
    """Some pairs, so many at a time; gone through again, they come in another drawn order.

    Args:
        whole: what has a length and `subset`.
        size: pairs a batch, ≥ 1; the last may be smaller.
        shuffle: whether the order is drawn; each time gone through it is another one.
        seed: draws the orders.

    Raises:
        CircuitError: `size` is below 1 or `seed` below 0.
    """

    def __init__(self, whole: Whole, size: int, *, shuffle: bool = False, seed: int = 0) -> None:
        for name, value, least in (("size", size, 1), ("seed", seed, 0)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise CircuitError(f"{name} is {value!r}, expected a whole number ≥ {least}.")
        self._whole: Whole = whole
        self._size, self._shuffle, self._seed = int(size), shuffle, int(seed)
        self._round = 0

    def __len__(self) -> int:
        return -(-len(self._whole) // self._size)

    def __iter__(self) -> Iterator[Whole]:
        order = np.arange(len(self._whole))
        if self._shuffle:
            order = np.random.default_rng([self._seed, self._round]).permutation(order)
            self._round += 1
        for start in range(0, len(order), self._size):
            yield self._whole.subset(order[start : start + self._size])


FORMAT = "circuitvit.pairs"
SCHEMA = 1
SHOWN = 6
"""Pairs that a notebook shows."""
TENSORS = ("clean", "corrupt", "labels", "corrupt_labels")

PairsType = TypeVar("PairsType", bound="PairedImages")


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PairedImages:
    """What `Pairs` hold; see there.

    Raises:
        CircuitError: shapes, lengths or dtypes disagree, there are no pairs, a pixel is not finite
            or a label negative; every problem is named.
    """

    clean: Float[Tensor, "image channel height width"]
    corrupt: Float[Tensor, "image channel height width"] | None = None
    labels: Int[Tensor, " image"] | None = None
    corrupt_labels: Int[Tensor, " image"] | None = None
    # No argument, so that pairs with other images can't be given a recipe that doesn't make them.
    recipe: PairRecipe | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._check()
        warn_of_same(self.clean, self.corrupt)

    def _check(self) -> None:
        problems = list(image_problems("clean", self.clean))
        if self.corrupt is not None:
            problems += image_problems("corrupt", self.corrupt)
            problems += _mismatches(self.clean, self.corrupt)
        count = len(self.clean) if isinstance(self.clean, Tensor) and self.clean.ndim else None
        for name in ("labels", "corrupt_labels"):
            if getattr(self, name) is not None:
                problems += label_problems(name, getattr(self, name), count)
        if problems:
            raise CircuitError("these pairs cannot be used: " + "; ".join(problems) + ".")
        for name in ("labels", "corrupt_labels"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(self, name).long())

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.clean.shape[1:]))
        given = [name for name in TENSORS[1:] if getattr(self, name) is not None]
        return f"Pairs({len(self)} images {shape}, with {', '.join(given) or 'nothing else'})"

    def _repr_html_(self) -> str:
        drawn = []
        for name, labels in (("clean", self.labels), ("corrupt", self.corrupt_labels)):
            images = getattr(self, name)
            if images is not None:
                few = stretched(images[:SHOWN])
                told = [""] * len(few) if labels is None else labels[:SHOWN].tolist()
                both = zip(few, told, strict=True)
                drawn += [thumbnail(image, f"{name} {label}".strip()) for image, label in both]
                drawn.append("<br>")
        rest = f"; the first {SHOWN}, with their classes" if len(self) > SHOWN else ""
        return thumbnails_html(f"{self!r}{rest}", drawn)

    def subset(self: PairsType, indices: Indices) -> PairsType:
        """Some of the pairs, in the order asked for.

        Raises:
            CircuitError: an index doesn't exist, or none is given.
        """
        places = positions_of(indices, len(self))
        part = self._each(lambda tensor: tensor[places.to(tensor.device)])
        return part if self.recipe is None else part._by(cut(self.recipe, places.tolist()))

    def to(self: PairsType, *args: Any, **kwargs: Any) -> PairsType:
        """The same pairs on another device, the images (not the labels) in another dtype.

        Takes what `torch.Tensor.to` takes: a device, a dtype, both, or a tensor that has them; by
        place or as `device=`, `dtype=`, `non_blocking=`.

        Raises:
            CircuitError: it is something else, or the dtype is not one of floating point.
        """
        like = _target(self.clean[:0], args, kwargs)
        late = bool(kwargs.get("non_blocking"))
        moved = self._each(
            lambda tensor: tensor.to(
                like.device, like.dtype if tensor.is_floating_point() else None, non_blocking=late
            )
        )
        if self.recipe is None:
            return moved
        same = moved.clean.dtype == self.clean.dtype
        return moved._by(self.recipe if same else cast(self.recipe, moved.clean.dtype))

    def batches(
        self: PairsType, size: int, *, shuffle: bool = False, seed: int = 0
    ) -> Batches[PairsType]:
        """The pairs, `size` at a time; the last batch may be smaller.

        Args:
            size: pairs a batch, ≥ 1.
            shuffle: whether to go through them in a drawn order, another one each time.
            seed: draws the orders.

        Returns:
            What gives the batches, as `Pairs`, each time it is gone through; it knows its length.

        Raises:
            CircuitError: `size` is below 1 or `seed` below 0.
        """
        return Batches(self, size, shuffle=shuffle, seed=seed)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the images and labels."""
        return fingerprint(*(getattr(self, name) for name in TENSORS))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the pairs and their recipe as a safetensors file, in one step.

        Raises:
            CircuitError: the file can't be written.
        """
        given = {name: getattr(self, name) for name in TENSORS}
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        told = {"schema": SCHEMA, "recipe": self.recipe, "fingerprint": self.fingerprint()}
        return write_tensors(path, tensors, {"format": "pt", FORMAT: json.dumps(told)})

    @classmethod
    def load(cls: type[PairsType], path: str | os.PathLike[str]) -> PairsType:
        """Read pairs that `save` wrote, recipe included.

        Raises:
            CircuitError: the file is missing, cut short, altered, or something else.
        """
        told, tensors = _read(readable_path(path, "pairs"))
        if told.get("schema") != SCHEMA:
            raise CircuitError(
                f"{path} has pairs schema {told.get('schema')!r}, this version reads {SCHEMA}. "
                "Update circuitvit, or make the pairs again."
            )
        known: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
        if fingerprint(*known.values()) != told.get("fingerprint"):
            raise CircuitError(
                f"{path} was altered after it was saved: its fingerprint does not match. Take the "
                "file from its source again."
            )
        pairs, recipe = cls(**known), told.get("recipe")
        return pairs if recipe is None else pairs._by(recipe)

    def _by(self: PairsType, recipe: PairRecipe) -> PairsType:
        """These very pairs, now with the recipe that made them."""
        object.__setattr__(self, "recipe", recipe)
        return self

    def _each(self: PairsType, change: Callable[[Tensor], Tensor]) -> PairsType:
        given = {name: getattr(self, name) for name in TENSORS}
        changed = {n: None if t is None else change(t) for n, t in given.items()}
        made = object.__new__(type(self))  # these were warned of when they were put together
        for name, value in (changed | {"recipe": None}).items():
            object.__setattr__(made, name, value)
        made._check()
        return made


def warn_of_same(clean: Tensor, corrupt: Tensor | None, *, least: int = 1) -> None:
    """Warn where corrupt images equal their clean ones, if at least so many do."""
    if corrupt is None:
        return
    same = int((corrupt.to(clean.device) == clean).flatten(1).all(dim=1).sum())
    if same >= least:
        warn(
            f"{same} of {len(clean)} corrupt images equal their clean ones, so patching with them "
            "changes nothing: such pairs carry no information, and if all are equal every score is "
            "0. Pair "
            "images that differ in what is under study; where a patch shows one colour only, take "
            "a larger one or another place."
        )


def _target(images: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """No images, on the device and in the dtype that arguments of `Tensor.to` name.

    Raises:
        CircuitError: torch can't take images there, or the dtype is not one of floating point.
    """
    given = tuple(value for value in args if value is not None)
    named = {name: value for name, value in kwargs.items() if value is not None}
    shown = ", ".join([*map(repr, given), *(f"{n}={v!r}" for n, v in named.items())])
    try:
        if any(isinstance(value, float | complex) for value in given):
            raise TypeError("torch takes a number for a tensor")
        found = images.to(*given, **named) if given or named else images
    except AssertionError as cause:  # torch was built without this kind of device
        raise CircuitError(
            f"pairs can't be taken to ({shown}): {reason_of(cause)}. Name another device."
        ) from cause
    except (TypeError, RuntimeError) as cause:
        raise CircuitError(
            f"pairs can't be taken to ({shown}), expected a device such as 'cuda', a dtype such as "
            "torch.bfloat16, or both."
        ) from cause
    if not found.is_floating_point():
        raise CircuitError(
            f"pairs can't be taken to {found.dtype}: images are of floating point, such as "
            "torch.float16."
        )
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        tensors, metadata = read_tensors(path)
        told = told_in(metadata, FORMAT)
    except FileNotFoundError as cause:
        raise CircuitError(f"no pairs at {path}: there is no such file.") from cause
    except (OSError, SafetensorError, ValueError) as cause:
        if path.is_dir():
            raise CircuitError(f"{path} is a folder, expected a file of pairs.") from cause
        raise CircuitError(
            f"{path} is not a whole file of pairs ({reason_of(cause)}).{_told(path)} It was cut "
            "short or is another kind of file; make the pairs again, as Pairs.remake(recipe, "
            "images) does."
        ) from cause
    if not isinstance(told, dict) or "clean" not in tensors:
        raise CircuitError(f"{path} holds no pairs: it lacks the mark {FORMAT!r}.{_told(path)}")
    return told, tensors


def _told(path: Path) -> str:
    return another_kind(path, than="Pairs.load")


def _mismatches(clean: object, corrupt: object) -> Iterator[str]:
    if not (isinstance(clean, Tensor) and isinstance(corrupt, Tensor)):
        return
    if clean.shape != corrupt.shape:
        yield (
            f"corrupt has shape {tuple(corrupt.shape)}, clean {tuple(clean.shape)}, expected the "
            "same; pair the images one to one and resize them alike"
        )
    if clean.dtype != corrupt.dtype:
        yield f"corrupt has dtype {corrupt.dtype}, clean {clean.dtype}, expected the same"
