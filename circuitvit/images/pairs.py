"""Pairs of a clean and a corrupt image: what a circuit is found and judged on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.images.image_set import ImageSet
from circuitvit.images.sampling import balanced
from circuitvit.images.tensors import (
    Indices,
    fingerprint,
    image_problems,
    label_problems,
    positions_of,
)


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pairs:
    """Clean images, each with a corrupt one that differs in what is under study.

    What is not needed may be left out: `zero` and `mean` ablation take no corrupt images, and `kl`
    no labels.

    Attributes:
        clean: the images whose logits are explained.
        corrupt: the paired images that patching takes its values from.
        labels: the class of each clean image; kept as int64.
        corrupt_labels: the class of each corrupt image; kept as int64.

    Raises:
        CircuitError: shapes, lengths or dtypes disagree, there are no pairs, a pixel is not finite
            or a label negative; every problem is named.
    """

    clean: Float[Tensor, "image channel height width"]
    corrupt: Float[Tensor, "image channel height width"] | None = None
    labels: Int[Tensor, " image"] | None = None
    corrupt_labels: Int[Tensor, " image"] | None = None

    def __post_init__(self) -> None:
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
        given = [n for n in ("corrupt", "labels", "corrupt_labels") if getattr(self, n) is not None]
        return f"Pairs({len(self)} images {shape}, with {', '.join(given) or 'nothing else'})"

    def subset(self, indices: Indices) -> "Pairs":
        """Some of the pairs, in the order asked for.

        Raises:
            CircuitError: an index doesn't exist, or none is given.
        """
        places = positions_of(indices, len(self))
        return self._each(lambda tensor: tensor[places.to(tensor.device)])

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Pairs":
        """The same pairs on another device, the images (not the labels) in another dtype."""
        return self._each(
            lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None)
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the images and labels."""
        return fingerprint(self.clean, self.corrupt, self.labels, self.corrupt_labels)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Pairs":
        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Pairs(
            clean=change(self.clean),
            corrupt=changed(self.corrupt),
            labels=changed(self.labels),
            corrupt_labels=changed(self.corrupt_labels),
        )

    @classmethod
    def by_class(
        cls,
        images: ImageSet,
        *,
        clean: str | int | None = None,
        corrupt: str | int | None = None,
        count: int,
        seed: int = 0,
    ) -> "Pairs":
        """Pair images of one class with images of another.

        No clean image comes twice; a corrupt one may. With `clean=None` the classes take turns, so
        that the pairs are as even over the classes as there are images.

        Args:
            images: where the images come from.
            clean: name or index of the clean images' class; None is every class but `corrupt`.
            corrupt: likewise of the corrupt images; None draws one of the other classes for each
                pair, all equally likely.
            count: number of pairs.
            seed: draws the images.

        Raises:
            CircuitError: a class is unknown or has no images, both classes are the same, or
                there are fewer clean images than pairs.
        """
        labels = images.labels.cpu().numpy()
        source = None if clean is None else _class_index(images, clean, "clean")
        target = None if corrupt is None else _class_index(images, corrupt, "corrupt")
        if source is not None and source == target:
            raise CircuitError(
                f"clean and corrupt are both the class {images.class_names[source]!r}, so the "
                "pairs would differ in nothing under study. Name two classes."
            )
        wanted = np.ones(len(labels), bool) if source is None else labels == source
        pool = np.flatnonzero(wanted if target is None else wanted & (labels != target))
        if not 1 <= count <= len(pool):
            raise CircuitError(
                f"{count} pairs were asked for, but there are {len(pool)} clean images. Ask for "
                f"1 to {len(pool)}, or give more images."
            )
        chosen = pool[balanced(labels[pool], count, seed)]
        partners = _partners(labels, chosen, target, seed)
        return cls(
            clean=images.images[chosen],
            corrupt=images.images[partners],
            labels=images.labels[chosen],
            corrupt_labels=images.labels[partners],
        )


def _partners(labels: np.ndarray, chosen: np.ndarray, target: int | None, seed: int) -> np.ndarray:
    """An image of `target`, or else of any other class, for each chosen image."""
    draw = np.random.default_rng([seed, 2])
    members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    if len(members) < 2:
        raise CircuitError(
            "all images are of one class, so there is none to draw corrupt images from. Give "
            "images of at least two classes."
        )
    partners = []
    for own in labels[chosen]:
        others = [label for label in members if label != own] if target is None else [target]
        partners.append(draw.choice(members[int(draw.choice(others))]))
    return np.array(partners)


def _class_index(images: ImageSet, asked: str | int, role: str) -> int:
    names = images.class_names
    if asked in names:
        index = names.index(str(asked))
    elif isinstance(asked, int) and 0 <= asked < len(names):
        index = asked
    else:
        raise CircuitError(
            f"{role} is {asked!r}, which is no class here. Give an index below {len(names)} or one "
            f"of these names: {', '.join(names)}."
        )
    if not (images.labels == index).any():
        raise CircuitError(
            f"{role} is {asked!r}, but these images hold none of that class. Give more images, or "
            "another class."
        )
    return index


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
