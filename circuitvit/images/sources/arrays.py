"""Images from arrays: in memory, in `.npz` files, and scikit-learn's digits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitvit.errors import CircuitError, reason_of
from circuitvit.images.classes.labels import coded, some
from circuitvit.images.image_table import Table
from circuitvit.images.sources.archives import arrays_of
from circuitvit.images.sources.split_expressions import split_of

_ROLES = {"images": "x|image|images|data|img|imgs", "labels": "y|label|labels|target|targets"}
_CHANNELS = (1, 3, 4)


def digits_table() -> Table:
    """scikit-learn's 1797 handwritten digits, 8×8 and grey; embedded, so no network is needed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images / 16).astype(np.float32)
    return arrays_table({"train": (images, digits.target)}, [str(n) for n in digits.target_names])


def arrays_table(
    splits: Mapping[str, tuple[Any, Any]], class_names: Sequence[str] | None = None
) -> Table:
    """Images and labels of each split as a table.

    Args:
        splits: images, bytes or floats in [0, 1], [image height width], [image height width
            channel] or [image channel height width] with 1, 3 or 4 channels (the fourth, the
            transparency, is dropped; where both the second and the last axis could be channels, the
            last ones are); and labels [image], as numbers, text or class indices.
        class_names: of the labels, which are then indices (or these names); by default the values
            that occur.

    Raises:
        CircuitError: shapes, types or values are not such; every problem is named.
    """
    problems: list[str] = []
    images, values = {}, []
    for split, (pictures, labels) in splits.items():
        raw = _array(pictures, f"{split} images", problems)
        flat = _array(labels, f"{split} labels", problems)
        if raw is not None:
            images[split], wrong = _images(raw, f"{split} images")
            problems += wrong
        if raw is not None and flat is not None:
            flat = flat[:, 0] if flat.ndim == 2 and flat.shape[1] == 1 else flat
            flat = _whole(flat)
            wrong = _label_problems(flat, len(raw) if raw.ndim else 0, f"{split} labels")
            values += [] if wrong else flat.tolist()  # a shape may claim more than there is room
            problems += wrong
    if problems:
        raise CircuitError("these arrays can't be used: " + "; ".join(problems) + ".")
    labels, names = coded(values, class_names)
    readers = {name: (len(array), array.__getitem__) for name, array in images.items()}
    grey = all(array.shape[3] == 1 for array in images.values())
    return Table(
        labels, names, readers, channels=1 if grey else 3, is_declared=class_names is not None
    )


def npz_table(path: Path) -> Table:
    """The arrays of a `.npz` file; their names say what they are.

    `x_train`, `y_train`, `x_test`, `y_test`, or `train_images`, `train_labels`, `val_images`, …, or
    `images`, `labels`; and `class_names`, if there are such.

    Raises:
        CircuitError: the file can't be read, or its arrays are not such.
    """
    arrays = arrays_of(path)
    names = arrays.pop("class_names", None)
    found: dict[str, dict[str, str]] = {}
    for name in arrays:
        split, role = split_of(name) or "train", _role(name)
        if role is not None:
            if role in found.setdefault(split, {}):
                raise CircuitError(
                    f"{path} has two arrays of {split} {role}, {found[split][role]!r} and "
                    f"{name!r}. Leave one out."
                )
            found[split][role] = name
    if not found or any(len(roles) < 2 for roles in found.values()):
        raise CircuitError(
            f"{path} has the arrays [{some(list(arrays))}], expected x_train and y_train, "
            "train_images and train_labels, or images and labels; likewise for test and "
            "validation, each images with their labels. Name them so."
        )
    splits = {s: (arrays[roles["images"]], arrays[roles["labels"]]) for s, roles in found.items()}
    return arrays_table(splits, None if names is None else [str(name) for name in names])


def _role(name: str) -> str | None:
    words = re.findall(r"[a-z]+", name.lower())
    return next(
        (role for role, said in _ROLES.items() if any(re.fullmatch(said, w) for w in words)), None
    )


def _array(values: Any, what: str, problems: list[str]) -> np.ndarray | None:
    """An array of numbers or text; None and one more problem where it can't be one."""
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            values = torch.stack(tuple(values))
        if not isinstance(values, Tensor):
            return np.asarray(values)
        # numpy knows fewer kinds of floats.
        values = values.float() if values.is_floating_point() else values
        return values.detach().cpu().numpy()
    except (ValueError, TypeError, RuntimeError) as cause:
        problems.append(f"the {what} can't be put into one array of one shape ({reason_of(cause)})")
        return None


def _images(array: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Bytes or 32-bit floats [image height width channel], and what is wrong with them."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in _CHANNELS and array.shape[1] in _CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in _CHANNELS:
        return array, [
            f"the {what} have the shape {array.shape}, expected [image height width], or with 1, 3 "
            "or 4 channels at the end or after the images"
        ]
    if not array.size:
        return array, [f"there are no {what}, the shape is {array.shape}"]
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255, []
    if array.dtype.kind not in "uif":
        return array, [f"the {what} are of type {array.dtype}, expected bytes or floats in [0, 1]"]
    low, high = array.min(), array.max()
    most = 1 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # so that NaN is wrong, too
        return array, [
            f"the {what} ({array.dtype}) go from {low} to {high}, expected 0 to {most}; scale them"
        ]
    return array.astype(np.float32 if most == 1 else np.uint8, copy=False), []


def _whole(labels: np.ndarray) -> np.ndarray:
    """Floats that are whole numbers as these; other labels as they are."""
    if labels.dtype.kind != "f" or not np.isfinite(labels).all() or (labels % 1).any():
        return labels
    return labels.astype(np.int64)


def _label_problems(labels: np.ndarray, count: int, what: str) -> list[str]:
    if labels.shape != (count,):
        return [
            f"the {what} have the shape {labels.shape}, expected ({count},), one class an image"
        ]
    if labels.dtype.kind not in "iubU":
        odd = ""
        if labels.dtype.kind == "f":
            broken = labels[~(np.isfinite(labels) & (labels % 1 == 0))]
            odd = f" such as {broken[0]}"
        return [f"the {what} are of type {labels.dtype}{odd}, expected whole numbers or text"]
    return []
