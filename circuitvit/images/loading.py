"""From a source of images to training, validation and test images."""

import numpy as np

from circuitvit.errors import CircuitError
from circuitvit.images.image_set import ImageSet, Splits
from circuitvit.images.sampling import balanced, stratified
from circuitvit.images.sources import read_source
from circuitvit.images.table import Table, digits_table, tables

MEAN = STANDARD_DEVIATION = 0.5
"""Of every channel: pixels in [0, 1] become values in [−1, 1]."""

Part = tuple[Table, np.ndarray]
"""A table, and the positions in it that are meant."""


def load_splits(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> Splits:
    """Load labelled images as three disjoint sets.

    A source's own validation and test images are kept as such (with validation images only, these
    become the test images); what is missing is carved from the training images, each class in
    proportion. Pixels are scaled to [0, 1] and normalised with mean and deviation 0.5.

    Args:
        source: `"digits"` (scikit-learn's 8×8 handwritten digits, embedded); or a folder of images,
            a parquet file, a folder or pattern of parquet files whose names say `train`, `test`
            or `valid`, or the id of a data set on the Hugging Face hub. `./digits` is a path.
        image_size: side in pixels; images are resized to it, the longer side cropped.
        channels: 1 (grey) or 3 (RGB); by default 3, and 1 for the digits.
        validation: share of the training images that becomes the validation images, where the
            source has none.
        test: likewise for the test images.
        seed: draws the parts and the images within the limit.
        limit: at most so many images in each part, drawn evenly over the classes.

    Returns:
        The three parts; the same arguments give the same images.

    Raises:
        CircuitError: there is nothing at the source, it can't be read, its images have no labels
            or several sizes, or it has too few images.
    """
    _check(image_size, channels, validation, test, limit)
    if source == "digits":
        own = {"train": digits_table(image_size=image_size, channels=channels)}
    else:
        own = tables(read_source(source), image_size=image_size, channels=channels)
    parts = _parts(own, validation, test, seed)
    small = [name for name, (_, places) in parts.items() if not len(places)]
    if small:
        count = {name: len(table.labels) for name, table in own.items()}
        raise CircuitError(
            f"{source} has too few images, {count}: none would be left for {', '.join(small)}. "
            "Give more images or larger shares."
        )
    return Splits(**{name: _image_set(part, seed, limit) for name, part in parts.items()})


def _check(
    image_size: int | None, channels: int | None, validation: float, test: float, limit: int | None
) -> None:
    problems = []
    if image_size is not None and image_size < 1:
        problems.append(f"image_size is {image_size}, expected at least 1 pixel")
    if channels not in (None, 1, 3):
        problems.append(f"channels is {channels}, expected 1 (grey) or 3 (RGB)")
    if not (validation > 0 and test > 0 and validation + test < 1):
        problems.append(
            f"validation is {validation} and test {test}, expected shares > 0 with a sum < 1"
        )
    if limit is not None and limit < 1:
        problems.append(f"limit is {limit}, expected at least 1 image")
    if problems:
        raise CircuitError("images can't be loaded so: " + "; ".join(problems) + ".")


def _parts(own: dict[str, Table], validation: float, test: float, seed: int) -> dict[str, Part]:
    """Which table and which of its images make up each part."""
    train = own["train"]
    parts = {name: (table, np.arange(len(table.labels))) for name, table in own.items()}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    shares = {"test": test, "validation": validation}
    carved = {
        name: round(share * len(train.labels))
        for name, share in shares.items()
        if name not in parts
    }
    *taken, kept = stratified(train.labels, tuple(carved.values()), seed)
    parts |= {name: (train, places) for name, places in zip(carved, taken, strict=True)}
    return parts | {"train": (train, kept)}


def _image_set(part: Part, seed: int, limit: int | None) -> ImageSet:
    import torch

    table, places = part
    if limit is not None and limit < len(places):
        places = np.sort(places[balanced(table.labels[places], limit, seed)])
    images = (table.pixels(places) - MEAN) / STANDARD_DEVIATION
    return ImageSet(images, torch.from_numpy(table.labels[places]), table.class_names)
