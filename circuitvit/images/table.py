"""A split as a table: labels that can be read at once, pixels that are decoded when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from circuitvit.errors import CircuitError

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
_IMAGE_NAMES = ("image", "img", "images")
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class Table:
    """Labels in memory, pixels not yet.

    Attributes:
        labels: the class of each image [image], int64.
        class_names: the name of each class.
        pixels: decodes the images at some positions, scaled to [0, 1].
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    pixels: Callable[[np.ndarray], Float[Tensor, "image channel height width"]]


def digits_table(*, image_size: int | None, channels: int | None) -> Table:
    """scikit-learn's 1797 handwritten digits, 8×8 and grey; embedded, so no network is needed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = torch.tensor(digits.images / 16, dtype=torch.float32)
    images = repeat(grey, "image height width -> image channel height width", channel=channels or 1)
    if image_size is not None:
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    names = tuple(str(name) for name in digits.target_names)
    return Table(digits.target.astype(np.int64), names, lambda places: images[places])


def tables(
    splits: Mapping[str, "Dataset"], *, image_size: int | None, channels: int | None
) -> dict[str, Table]:
    """Each split as a table, with the classes of all of them.

    The image and the label column are found by their feature types.

    Raises:
        CircuitError: there is no such column or more than one, or a label is missing.
    """
    features = splits["train"].features
    image, label = _column(features, "image"), _column(features, "label")
    raw = {name: split.select_columns([label])[:][label] for name, split in splits.items()}
    if any(value is None for values in raw.values() for value in values):
        raise CircuitError(
            f"some images have no label in the column {label!r}. Leave them out, or label them."
        )
    names = getattr(features[label], "names", None)
    if names is None:
        found = sorted({value for values in raw.values() for value in values})
        codes = {value: code for code, value in enumerate(found)}
        raw = {name: [codes[value] for value in values] for name, values in raw.items()}
        names = [str(value) for value in found]

    def table(name: str) -> Table:
        decode = _decoder(splits[name], image, name, image_size=image_size, channels=channels or 3)
        return Table(np.array(raw[name], dtype=np.int64), tuple(names), decode)

    return {name: table(name) for name in splits}


def _column(features: Mapping[str, Any], role: str) -> str:
    """The column of images or labels: by its type, and by its name where several have the type."""
    if role == "image":
        candidates, usual = [n for n, f in features.items() if _holds_images(f)], _IMAGE_NAMES
    else:
        candidates = [n for n, f in features.items() if hasattr(f, "names")]
        candidates = candidates or [n for n, f in features.items() if _holds_labels(f)]
        usual = _LABEL_NAMES
    if len(candidates) > 1:
        candidates = [name for name in usual if name in candidates][:1]
    if len(candidates) != 1:
        raise CircuitError(
            f"which column holds the {role}s is not clear: the columns are {list(features)}. "
            "Images are found by the feature Image, labels by ClassLabel or as whole numbers or "
            "text (a folder of images needs one folder a class, all equally deep). "
            f"Name the column {role!r}."
        )
    return candidates[0]


def _holds_images(feature: Any) -> bool:
    if type(feature).__name__ == "Image" or getattr(feature, "dtype", None) == "binary":
        return True
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _holds_labels(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))


def _decoder(
    split: "Dataset", column: str, name: str, *, image_size: int | None, channels: int
) -> Callable[[np.ndarray], Float[Tensor, "image channel height width"]]:
    import datasets

    split = split.select_columns([column])
    if not isinstance(split.features[column], datasets.Image):
        split = split.cast_column(column, datasets.Image())

    def decode(places: np.ndarray) -> Float[Tensor, "image channel height width"]:
        found: list[np.ndarray] = []
        try:
            row: Any
            for row in split.select(places):
                found.append(_pixels(row[column], _MODES[channels], image_size))  # noqa: PERF401
        except CircuitError:
            raise
        except (OSError, SyntaxError, ValueError, AttributeError) as cause:
            raise CircuitError(
                f"image {places[len(found)]} of the {name} images can't be read: {cause}. Replace "
                "it, or leave it out."
            ) from cause
        _check_one_shape(found)
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().float().div_(255)

    return decode


def _check_one_shape(found: list[np.ndarray]) -> None:
    shapes = sorted({pixels.shape[:2] for pixels in found})
    if len(shapes) > 1 or shapes[0][0] != shapes[0][1]:
        some = ", ".join(f"{height}×{width}" for height, width in shapes[:4])
        raise CircuitError(
            f"the images are {some} pixels high and wide, expected squares of one size. Give "
            "image_size: they are then resized and cropped to their middle."
        )


def _pixels(image: "Image", mode: str, image_size: int | None) -> np.ndarray:
    """An image as bytes [height width channel], resized and cropped to its middle if asked."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    if image.mode.startswith(("I", "F")):
        raise CircuitError(
            f"an image has the pixel mode {image.mode}, more than 8 bits a channel, whose range is "
            "not known. Save the images with 8 bits a channel."
        )
    if image.mode == "P":
        image = image.convert("RGBA")  # else the transparency of a palette gets lost with a warning
    image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, -1)
