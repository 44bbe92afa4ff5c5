"""Labelled images in memory, and the three disjoint parts of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.errors import CircuitError, in_short, printable
from circuitvit.images.classes.labels import UNLABELLED, matched, warn_of_order
from circuitvit.images.decoding.pixels import decode
from circuitvit.images.decoding.view_settings import Viewer, asked_for
from circuitvit.images.sources.arrays import arrays_table
from circuitvit.images.tensor_checks import (
    Indices,
    fingerprint,
    image_problems,
    label_problems,
    positions_of,
    unnormalised,
)
from circuitvit.images.thumbnails import stretched, thumbnail, thumbnails_html
from circuitvit.preprocessing import Preprocessing, class_name

SHOWN = 12
"""Classes of which a notebook shows an image."""


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their classes, normalised and ready for a model.

    Attributes:
        images: scaled to [0, 1] and then normalised, (x − mean) / std.
        labels: the class of each image, int64.
        class_names: the name of each class, in the order of the model's logits; accents are kept
            composed with their letters (NFC), whatever system the names are from.
        preprocessing: how pictures became these images; None where that is not known.

    Raises:
        CircuitError: shapes disagree, a label has no class, a pixel is not finite, or there are no
            images; every problem is named.
    """

    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        problems = list(image_problems("images", self.images))
        count = len(self.images) if isinstance(self.images, Tensor) and self.images.ndim else None
        names: Any = self.class_names
        texts = isinstance(names, Sequence) and not isinstance(names, str)
        if texts and all(isinstance(name, str) for name in names):
            object.__setattr__(self, "class_names", tuple(map(class_name, names)))
            problems += label_problems("labels", self.labels, count, len(names))
        else:
            problems.append(f"class_names is {in_short(names)}, expected a name for each class")
        if problems:
            raise CircuitError("an ImageSet cannot be made: " + "; ".join(problems) + ".")
        object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self)} images {shape}, {len(self.class_names)} classes)"

    def _repr_html_(self) -> str:
        pixels, counts = self._unnormalised, self.labels.bincount(minlength=len(self.class_names))
        there = counts.nonzero().flatten().tolist()
        firsts = [int((self.labels == label).nonzero()[0]) for label in there[:SHOWN]]
        drawn = [
            thumbnail(pixels(self.images[place]), f"{printable(name, most=24)}: {count:,}")
            for place, name, count in (
                (place, self.class_names[label], int(counts[label]))
                for place, label in zip(firsts, there, strict=False)
            )
        ]
        rest = f"; the first of {SHOWN} classes, with its images" if len(there) > SHOWN else ""
        return thumbnails_html(f"{self!r}{rest}", drawn)

    def _unnormalised(self, image: Tensor) -> Tensor:
        """An image with values in 0–1, as its picture had them; where not known, stretched."""
        if self.preprocessing is None:
            return stretched(image[None])[0]
        return unnormalised(image.detach(), self.preprocessing)

    def subset(self, indices: Indices) -> "ImageSet":
        """Some of the images, in the order asked for; the classes stay the same.

        Raises:
            CircuitError: an index doesn't exist, or none is given.
        """
        places = positions_of(indices, len(self)).to(self.images.device)
        return replace(self, images=self.images[places], labels=self.labels[places])

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the images and labels."""
        return fingerprint(self.images, self.labels)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        *,
        model: Viewer | None = None,
    ) -> "ImageSet":
        """Images from numpy or torch arrays, as `load_splits` would make them from files.

        Args:
            images: bytes, or floats in [0, 1]: [image height width], or with 1, 3 or 4 channels at
                the end or after the images. They are copied.
            labels: [image], indices of the class names (or names of them); without names, the
                values that occur are the classes, in order.
            class_names: in the order of the labels; by default those of the model's preprocessing.
                Where these differ, classes are matched to the model's by name.
            preprocessing: used instead of the model's; by default mean and deviation 0.5.
            image_size: side in pixels; by default the model's, else as it is.
            channels: 1 (grey) or 3 (RGB); by default the model's, else as they are.
            model: a `ViT` or `CircuitViT` that will look at them.

        Raises:
            CircuitError: shapes, types or values are not such, or the classes are not the model's.
        """
        asked = asked_for(model, preprocessing, image_size, channels)
        listed = isinstance(class_names, Sequence | np.ndarray | None)
        wrong = f"class_names is {in_short(class_names)}, expected a name for each class"
        if problems := [*asked.problems, *([] if listed else [wrong])]:
            raise CircuitError("images can't be made so: " + "; ".join(problems) + ".")
        known = asked.preprocessing.class_names
        table = arrays_table({"train": (images, labels)}, class_names or known)
        labelled = table.labels, table.class_names
        if missing := int((labelled[0] == UNLABELLED).sum()):
            raise CircuitError(f"{missing} labels are below 0. Leave these images out.")
        codes, names = labelled if known is None else matched(labelled, known)
        if asked.classes not in (None, len(names)):
            raise CircuitError(
                f"this model has {asked.classes} classes, these images {len(names)}. Give "
                "class_names, one for each class of the model."
            )
        if not (known or class_names):
            warn_of_order(names, is_declared=False, remedy="Say the order with class_names=[…].")
        found = decode(table, np.arange(len(codes)), asked.look(table))
        pixels, labels = asked.normalised(found.pixels), torch.from_numpy(codes)
        return cls(pixels, labels, names, replace(asked.preprocessing, class_names=names))


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set.

    Attributes:
        train: to train on.
        validation: to choose by.
        test: to report on.
        skipped: a line for each picture that could not be read: `train image 17 (path): reason`,
            or `path: reason` for files that Pillow knows nothing of.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()
