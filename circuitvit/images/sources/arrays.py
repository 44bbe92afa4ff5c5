"""Images from arrays: in memory, in `.npz` files, and scikit-learn's digits.

For `.npz` files, the claimed size is counted before memory is allocated for any of it.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitvit.errors import CircuitError, reason_of
from circuitvit.images.classes.labels import coded, some
from circuitvit.images.image_table import Table
from circuitvit.images.sources.split_expressions import split_of
from circuitvit.memory import memory_left

_MOST_ARRAYS = 1000
_MOST_DIRECTORY = 2**20
_SMALL = 64 * 2**20
_MOST_FOLD = 200
"""How many times their size in the file arrays of more than `_SMALL` bytes may be: photographs
shrink to a half or a third, and zip shrinks nothing to less than a thousandth."""

_MAGIC = b"\x93NUMPY"
_END = b"PK\x05\x06"
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy writes; others take room unasked
_BROKEN = (
    OSError, ValueError, EOFError, MemoryError, ArithmeticError, RecursionError, RuntimeError,
    SyntaxError, TypeError, LookupError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name; what else lies in it is left out.

    Raises:
        CircuitError: the file can't be read, an array is of Python objects or claims more than the
            file holds, or all of them need more memory than is free.
    """
    try:
        with path.open("rb") as opened:
            _check_directory(opened)
            with zipfile.ZipFile(opened) as archive:
                members = _checked(archive)
                return {name: _read(archive, member) for name, member in members.items()}
    except _BROKEN as cause:
        raise CircuitError(
            f"{path} can't be read: {reason_of(cause)}. Write it with numpy.savez, without Python "
            "objects."
        ) from cause


def _check_directory(opened: io.BufferedIOBase) -> None:
    """Refuse a list of members that would itself fill the memory."""
    opened.seek(0, 2)
    opened.seek(max(0, opened.tell() - 2**16 - 22))
    tail = opened.read()
    at = tail.rfind(_END)
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if size > _MOST_DIRECTORY:
        raise ValueError(f"its list of arrays claims {_told(size)}")
    opened.seek(0)


def _checked(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays in an archive, none of which claims too much."""
    infos = archive.infolist()
    if len(infos) > _MOST_ARRAYS:
        raise ValueError(f"it holds {len(infos)} arrays, expected at most {_MOST_ARRAYS}")
    if odd := next((info for info in infos if info.compress_type not in _PACKED), None):
        raise ValueError(f"{odd.filename!r} is packed in a way that numpy.savez doesn't use")
    swollen = [info for info in infos if info.file_size > _MOST_FOLD * info.compress_size]
    if (size := sum(info.file_size for info in swollen)) > _SMALL:
        raise ValueError(
            f"{swollen[0].filename!r} claims more than {_MOST_FOLD} times what it takes in the "
            f"file, {_told(size)}"
        )
    total, free = sum(info.file_size for info in infos), memory_left()
    if total > free:
        raise ValueError(f"it claims {_told(total)} of arrays, and {_told(free)} are free")
    found = {}
    for info in infos:
        with archive.open(info) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                continue
        with archive.open(info) as file:
            _check_claim(info, file)
        found[info.filename.removesuffix(".npy")] = info
    return found


def _check_claim(info: zipfile.ZipInfo, file: Any) -> None:
    """Refuse an array whose header promises another size than its member has."""
    version = np.lib.format.read_magic(file)
    header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(
            f"{info.filename!r} is of the .npy version {version}, as no plain array is"
        )
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename!r} is an array of Python objects")
    claimed, held = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if claimed != held or any(side < 0 for side in shape):
        raise ValueError(
            f"{info.filename!r} says that it is {dtype} of shape {shape}, {_told(claimed)}, but "
            f"holds {_told(held)}"
        )


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at the end of a member zipfile checks its sum
    return array


def _told(size: int) -> str:
    return f"{size / 2**30:z,.1f} GiB" if abs(size) >= 2**29 else f"{size:,} bytes"


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
