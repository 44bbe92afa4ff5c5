"""Folders of images: which files are images, which folders are splits, which are classes.

The class of an image is the folder that it lies in, as `datasets` has it; folders in which that
may not be what is meant are refused. Links to folders and files are followed.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from circuitvit.errors import CircuitError
from circuitvit.images.slices import split_of

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TOLD = 6


def files_below(folder: Path) -> list[Path]:
    """All files at any depth, hidden ones and those in hidden folders apart, in order.

    A link that leads back to a folder above it is left out.

    Raises:
        CircuitError: a folder can't be read.
    """
    try:
        return sorted(_walked(folder, (os.path.realpath(folder),)))
    except OSError as cause:
        raise CircuitError(f"{folder} can't be read: {cause}. Check its permissions.") from cause


def _walked(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    for place in folder.iterdir():
        if place.name.startswith("."):
            continue
        if not place.is_dir():
            yield place
        elif (real := os.path.realpath(place)) not in above:
            yield from _walked(place, (*above, real))


def is_metadata(path: Path) -> bool:
    """Whether a file describes the images beside it, as `datasets` has it."""
    return path.name in _METADATA


def images_by_split(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder, and the metadata files that describe them, by split.

    Folders named after splits are such where all that hold images are so named: a class may be
    called `train` too. A folder that holds but one other is as good as that one.

    Raises:
        CircuitError: there are no images, or which folders are the classes is not clear.
    """
    images = _reachable(_images_and_metadata(folder))
    if all(map(is_metadata, images)):
        raise CircuitError(
            f"the folder {folder} holds no images and no parquet files. Put the images into it, "
            "one folder a class."
        )
    root, parts = _parts_of(folder, images)
    if not parts or not all(split_of(part.name) for part in parts):
        _check_classes(root, images)
        _warn_of_empty({folder, root}, images)
        return {"train": images}
    found: dict[str, list[Path]] = {}
    for part, own in parts.items():
        if not any(map(is_metadata, own)) and any(image.parent == part for image in own):
            raise CircuitError(
                f"{part} holds images beside one another, so their classes are not known. Make "
                "one folder a class in it."
            )
        _check_classes(part, own)
        found.setdefault(split_of(part.name) or "train", []).extend(own)
    _warn_of_empty({folder, root, *parts}, images)
    return found


def _images_and_metadata(folder: Path) -> list[Path]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    kinds = {*ImageFolder.EXTENSIONS}
    return [p for p in files_below(folder) if p.suffix.lower() in kinds or is_metadata(p)]


def _reachable(files: list[Path]) -> list[Path]:
    """The files that are there; links that lead nowhere are told."""
    lost = [path for path in files if not path.is_file()]
    if lost:
        warnings.warn(
            f"{len(lost)} images are links that lead nowhere, so they are left out: "
            f"{_listed(lost)}.",
            stacklevel=2,
        )
    return [path for path in files if path not in set(lost)] if lost else files


def _parts_of(folder: Path, images: list[Path]) -> tuple[Path, dict[Path, list[Path]]]:
    """The folder in which splits or classes lie, and the folders in it that hold images, with them.

    It has none where images lie beside them.
    """
    while True:
        parts: dict[Path, list[Path]] = {}
        for image in images:
            parts.setdefault(folder / image.relative_to(folder).parts[0], []).append(image)
        if any(image.parent == folder for image in images):
            return folder, {}
        (first, *others) = parts
        if others or split_of(first.name) or any(image.parent == first for image in images):
            return folder, parts
        folder = first  # what unpacks into a folder of its own


def _check_classes(root: Path, images: list[Path]) -> None:
    """Refuse class folders in several folders: the class may be the outer or the inner one.

    Raises:
        CircuitError: as it says.
    """
    if any(map(is_metadata, images)):
        return  # which says the classes
    classes = sorted({image.parent for image in images})
    if len({place.parent for place in classes}) == 1:
        return
    if root in classes:
        loose = [image.relative_to(root) for image in images if image.parent == root]
        raise CircuitError(
            f"{root} holds {len(loose)} images beside its folders ({_listed(loose)}), so their "
            "class is not known. Make one folder a class, with all of its images."
        )
    raise CircuitError(
        f"the images in {root} lie in folders within folders "
        f"({_listed([place.relative_to(root) for place in classes])}), so which of these are the "
        "classes is not clear. Make one folder a class directly in it, or in the folder of each "
        "split, such as 'train' and 'test'; each with all images of the class."
    )


def _warn_of_empty(roots: Iterable[Path], images: list[Path]) -> None:
    """A class or split without images is none to `datasets`, which says nothing."""
    full = {place for image in images for place in image.parents}
    empty = [
        str(place.relative_to(root.parent))
        for root in sorted(roots)
        for place in sorted(root.iterdir())
        if place.is_dir() and not place.name.startswith((".", "__")) and place not in full
    ]
    if empty:
        warnings.warn(
            f"these folders hold no images, so they are left out: {', '.join(empty)}.",
            stacklevel=2,
        )


def _listed(paths: Sequence[Path]) -> str:
    rest = len(paths) - _TOLD
    return ", ".join(map(str, paths[:_TOLD])) + (f" and {rest} more" if rest > 0 else "")
