"""All pictures of a source as one table: labels at once, pictures on request."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitvit.errors import CircuitError, reason_of
from circuitvit.images.classes.labels import as_one, coded, plain_labels

if TYPE_CHECKING:
    from datasets import Dataset

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
_IMAGE_NAMES = ("image", "img", "images")
_LONG = 400

Raw = Mapping[str, Any] | np.ndarray | None
"""A picture as stored: its file as `bytes`, else its `path`, or Pillow's own as `image`; or bytes
or floats in [0, 1], [height width channel]; None where there is none."""

PictureReader = Callable[[np.ndarray], Sequence[Raw]]
"""From positions in a split to its pictures."""


@dataclass(frozen=True, eq=False)
class Table:
    """The splits of a source, one after another.

    Attributes:
        labels: the class of each picture [image], int64; negative codes are those of `labels`.
        class_names: the name of each class.
        splits: the number of pictures of each split, and how to read them.
        channels: 1 (grey) or 3 (RGB), where none are asked for.
        is_declared: whether the source lists its classes; else they are the values that occur.
        unreadable: a line for each picture that is left out from the first: `path: reason`.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, PictureReader]]
    channels: int = 3
    is_declared: bool = True
    unreadable: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The number of pictures of each split."""
        return {name: count for name, (count, _) in self.splits.items()}

    def read(self, places: np.ndarray) -> list[Raw]:
        """The pictures at some positions, in the order asked for."""
        found: list[Raw] = [None] * len(places)
        start = 0
        for count, read in self.splits.values():
            mine = np.flatnonzero((places >= start) & (places < start + count))
            if len(mine):
                for place, raw in zip(mine, read(places[mine] - start), strict=True):
                    found[place] = raw
            start += count
        return found

    def where(self, place: int, raw: Raw = None) -> str:
        """The name of a picture in messages: `train image 17 (cats/17.png)`."""
        path = raw.get("path") if isinstance(raw, Mapping) else None
        for name, count in self.sizes.items():
            if place < count:
                return f"{name} image {place}" + (f" ({path[-_LONG:]})" if path else "")
            place -= count
        raise IndexError(place)

    def fingerprint(self, places: np.ndarray, chunk: int = 256) -> str:
        """16 hexadecimal digits that name the contents of the pictures at some positions.

        Files that are read by path count as the same while their size and date are.
        """
        digest = hashlib.sha256()
        for begin in range(0, len(places), chunk):
            for raw in self.read(places[begin : begin + chunk]):
                digest.update(_stamp(raw))
        return digest.hexdigest()[:16]


def _stamp(raw: Raw) -> bytes:
    if isinstance(raw, np.ndarray):
        return hashlib.sha256(f"{raw.shape} {raw.dtype}".encode() + raw.tobytes()).digest()
    if raw is None or raw.get("bytes") is not None:
        return hashlib.sha256(b"" if raw is None else raw["bytes"]).digest()
    path = Path(str(raw.get("path")))
    try:
        status = path.stat()
    except (OSError, ValueError):
        return f"{path} missing".encode(errors="backslashreplace")
    told = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return told.encode(errors="surrogateescape")


def files_table(
    splits: Mapping[str, Sequence[tuple[Path, str]]], names: Sequence[str] | None = None
) -> Table:
    """Picture files, each with its class, as a table.

    Args:
        splits: the files of each split.
        names: the classes, where they are listed; by default those that occur.
    """
    labels, class_names = coded([name for rows in splits.values() for _, name in rows], names)
    readers = {
        split: (len(rows), _files([path for path, _ in rows])) for split, rows in splits.items()
    }
    return Table(labels, class_names, readers, is_declared=names is not None)


def _files(paths: Sequence[Path]) -> PictureReader:
    def read(places: np.ndarray) -> list[Raw]:
        return [{"path": str(paths[place]), "bytes": None} for place in places]

    return read


def dataset_table(splits: Mapping[str, "Dataset"]) -> Table:
    """Splits of `datasets` as a table, with the classes of all of them.

    The image and the label column are found by their feature types.

    Raises:
        CircuitError: there is no such column, or more than one; or labels are none.
    """
    features = next(iter(splits.values())).features
    image, label = column_of(features, "image"), column_of(features, "label")
    if lacking := [split for split, rows in splits.items() if image not in rows.features]:
        columns = list(splits[lacking[0]].features)
        raise CircuitError(
            f"the split {lacking[0]!r} has no column {image!r}, but {columns}. Give splits with "
            "the same columns."
        )
    named = {split: rows for split, rows in splits.items() if label in rows.features}
    values: dict[str, list[Any]] = {name: [None] * len(rows) for name, rows in splits.items()}
    values |= {split: rows.select_columns([label])[:][label] for split, rows in named.items()}
    names = {split: getattr(rows.features[label], "names", None) for split, rows in named.items()}
    first = next(iter(names.values()))
    if any(other != first for other in names.values()):  # then an index says nothing by itself
        for split, own in names.items():
            values[split] = [_called(value, own) for value in values[split]]
    every = plain_labels([v for own in values.values() for v in own], f"the column {label!r}")
    labels, class_names = as_one(coded(every, first), first or ())
    readers = {name: (len(split), _reader(split, image)) for name, split in splits.items()}
    return Table(labels, class_names, readers, is_declared=first is not None)


def _called(value: Any, names: Sequence[str] | None) -> str | None:
    """The name of a label, which is an index where there are names; None for none."""
    if value is None or (not isinstance(value, str) and value < 0):
        return None
    return str(value if names is None or isinstance(value, str) else names[value])


def _reader(split: "Dataset", column: str) -> PictureReader:
    import datasets

    undecoded = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def read(places: np.ndarray) -> list[Raw]:
        try:
            return list(undecoded[places.tolist()][column])
        except (
            ArithmeticError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as cause:
            raise CircuitError(
                f"the column {column!r} can't be read: {reason_of(cause)}. Check that the files "
                "are whole."
            ) from cause

    return read


def column_of(features: Mapping[str, Any], role: str) -> str:
    """The column of the `image`s or `label`s: by its type, and by its name where several have it.

    Raises:
        CircuitError: there is no such column, or it is not clear which.
    """
    if role == "image":
        candidates, usual = [n for n, f in features.items() if _holds_images(f)], _IMAGE_NAMES
    else:
        candidates, usual = [n for n, f in features.items() if hasattr(f, "names")], _LABEL_NAMES
        named = next((name for name in usual if name in features), None)
        if not candidates and named is not None:
            _check_labels(named, features[named])
            candidates = [named]
        candidates = candidates or [n for n, f in features.items() if _holds_labels(f)]
    if len(candidates) > 1:
        candidates = [name for name in usual if name in candidates][:1]
    named = next((name for name in usual if name in features), None)
    if not candidates and role == "image" and named is not None:
        raise CircuitError(
            f"the column {named!r} holds {type(features[named]).__name__}, expected pictures, the "
            "feature Image. Arrays go to cv.ImageSet.from_arrays(data[...], labels)."
        )
    if len(candidates) != 1:
        raise CircuitError(
            f"which column holds the {role}s is not clear: the columns are {list(features)}. "
            "Images are found by the feature Image, labels by ClassLabel or as whole numbers or "
            f"text. Name the column {role!r}."
        )
    return candidates[0]


def _check_labels(name: str, feature: Any) -> None:
    if not _holds_labels(feature) and not str(getattr(feature, "dtype", "")).startswith("float"):
        kind = getattr(feature, "dtype", None) or type(feature).__name__
        raise CircuitError(
            f"the column {name!r} holds values of type {kind}, expected one class an image, as "
            "ClassLabel, a whole number or text. Convert them, or give another column this name."
        )


def _holds_images(feature: Any) -> bool:
    if type(feature).__name__ == "Image" or getattr(feature, "dtype", None) == "binary":
        return True
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _holds_labels(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))
