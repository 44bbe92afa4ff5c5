"""Labelled images in memory, and the three disjoint parts of a data set."""

from dataclasses import dataclass
from typing import no_type_check

from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.images.tensors import (
    Indices,
    fingerprint,
    image_problems,
    label_problems,
    positions_of,
)


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their classes, normalised and ready for a model.

    Attributes:
        images: scaled to [0, 1] and then normalised, (x − mean) / std.
        labels: the class of each image, int64.
        class_names: the name of each class, in the order of the model's logits.

    Raises:
        CircuitError: shapes disagree, a label has no class, a pixel is not finite, or there are no
            images; every problem is named.
    """

    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = list(image_problems("images", self.images))
        count = len(self.images) if isinstance(self.images, Tensor) and self.images.ndim else None
        problems += label_problems("labels", self.labels, count, len(self.class_names))
        if problems:
            raise CircuitError("an ImageSet cannot be made: " + "; ".join(problems) + ".")
        object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self)} images {shape}, {len(self.class_names)} classes)"

    def subset(self, indices: Indices) -> "ImageSet":
        """Some of the images, in the order asked for; the classes stay the same.

        Raises:
            CircuitError: an index doesn't exist, or none is given.
        """
        places = positions_of(indices, len(self)).to(self.images.device)
        return ImageSet(self.images[places], self.labels[places], self.class_names)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the images and labels."""
        return fingerprint(self.images, self.labels)


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set: to train on, to choose by, to report on."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
