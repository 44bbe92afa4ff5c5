"""Folders of images: which files are images, which folders are splits, which are classes.

The class of an image is the folder that it lies in; folders in which that may not be what is meant
are refused. Links to folders and files are followed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitvit.errors import CircuitError, reason_of, warn
from circuitvit.images.decoding.pictures import file_kind, picture_endings
from circuitvit.images.sources.split_expressions import split_of

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TOLD = 6


@dataclass(frozen=True)
class Layout:
    """The contents of a folder of images.

    Attributes:
        splits: the images of each split, and the metadata files that describe them, in order.
        unreadable: a line for each picture that can't be read: `path: reason`.
    """

    splits: dict[str, list[Path]]
    unreadable: tuple[str, ...]

    @property
    def is_described(self) -> bool:
        """Whether metadata files, not the folders, say the classes."""
        return any(is_metadata(path) for paths in self.splits.values() for path in paths)


@dataclass(frozen=True)
class Walked:
    """The files and folders in a folder.

    Attributes:
        files: all at any depth, hidden ones and those in hidden folders apart, in order.
        again: links to folders that are read already, by another path than a folder above them.
    """

    files: list[Path]
    again: list[Path]

    @property
    def pictures(self) -> list[Path]:
        """Files whose endings are those of pictures."""
        return [path for path in self.files if path.suffix.lower() in picture_endings()]


def walked(folder: Path) -> Walked:
    """What lies in a folder; each folder is read once, however many links lead to it.

    What is in it counts before what links lead to, so that it keeps its own name.

    Raises:
        CircuitError: a folder can't be read.
    """
    files, links, again = list[Path](), [folder], list[Path]()
    seen = set[tuple[int, int]]()
    try:
        while links:
            found = list[Path]()
            for place in sorted(links):
                if _is_new(place, seen):
                    _read_into(place, seen, files, found)
                elif not _leads_up(place):
                    again.append(place)
            links = found
    except OSError as cause:
        raise CircuitError(
            f"{folder} can't be read: {reason_of(cause)}. Check its permissions."
        ) from cause
    return Walked(sorted(files, key=lambda path: path.parts), sorted(again))


def _leads_up(link: Path) -> bool:
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _read_into(
    folder: Path, seen: set[tuple[int, int]], files: list[Path], links: list[Path]
) -> None:
    """Add the files in a folder and in those in it, and the links to other folders."""
    inside = [folder]
    while inside:
        with os.scandir(inside.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                place = Path(entry.path)
                if entry.is_symlink():
                    (links if place.is_dir() else files).append(place)
                elif not entry.is_dir():
                    files.append(place)
                elif _is_new(place, seen):
                    inside.append(place)


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was not met before, by whatever path."""
    status = folder.stat()
    key = status.st_dev, status.st_ino
    is_new = key not in seen
    seen.add(key)
    return is_new


def is_metadata(path: Path) -> bool:
    """Whether a file describes the images beside it, as `datasets` has it."""
    return path.name in _METADATA


def layout_of(folder: Path, inside: Walked) -> Layout:
    """The images of a folder by split; what is left out is named in one warning.

    Folders named after splits are such where all that hold images are so named: a class may be
    called `train` too. A folder that holds but one other is as good as that one.

    Raises:
        CircuitError: there are no images, or which folders are the classes is not clear.
    """
    files = inside.files
    images, unreadable, strangers = _sorted_out(f for f in files if f.is_file())
    if all(map(is_metadata, images)):
        raise CircuitError(_nothing_in(folder, unreadable, strangers))
    splits, roots = _by_split(folder, images)
    remarks = [*_of_lost(files), *_of_links(inside.again), *_of_empty(roots, images, unreadable)]
    if strangers:
        remarks.append(
            f"{len(strangers)} files in {folder} are no pictures, so they are left out: "
            f"{_listed([path.relative_to(folder) for path in strangers])}."
        )
    if remarks:
        warn(" ".join(remarks))
    return Layout(splits, tuple(f"{path}: {reason}" for path, reason in unreadable.items()))


def _sorted_out(files: Iterable[Path]) -> tuple[list[Path], dict[Path, str], list[Path]]:
    """Images and metadata; pictures that can't be read, with the reason; and what is no picture."""
    images, unreadable, strangers = list[Path](), dict[Path, str](), list[Path]()
    for path in files:
        kind, reason = ("picture", "") if is_metadata(path) else file_kind(path)
        if kind == "picture":
            images.append(path)
        elif kind == "unreadable":
            unreadable[path] = reason
        else:
            strangers.append(path)
    return images, unreadable, strangers


def _nothing_in(folder: Path, unreadable: Mapping[Path, str], strangers: Sequence[Path]) -> str:
    if unreadable:
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        some = "; ".join(f"{path}: {reason}" for path, reason in [*unreadable.items()][:3])
        return f"the folder {folder} holds no images that can be read: {some}{more}."
    names = _listed([path.relative_to(folder) for path in strangers])
    found = f" (but {names})" if strangers else ""
    return (
        f"the folder {folder} holds no images and no parquet files{found}. Put the images into it, "
        "one folder a class."
    )


def _by_split(folder: Path, images: list[Path]) -> tuple[dict[str, list[Path]], set[Path]]:
    """The images of each split, and the folders in which splits or classes lie."""
    root, parts = _parts_of(folder, images)
    if not parts or not all(split_of(part.name) for part in parts):
        _check_classes(root, images)
        return {"train": images}, {folder, root}
    found: dict[str, list[Path]] = {}
    for part, own in parts.items():
        if not any(map(is_metadata, own)) and any(image.parent == part for image in own):
            raise CircuitError(
                f"{part} holds images beside one another, so their classes are not known. Make "
                "one folder a class in it."
            )
        _check_classes(part, own)
        found.setdefault(split_of(part.name) or "train", []).extend(own)
    return found, {folder, root, *parts}


def _of_lost(files: Iterable[Path]) -> Iterator[str]:
    """Pictures that are links to nothing, and what only bears the name of one."""
    endings = picture_endings()
    none = [path for path in files if path.suffix.lower() in endings and not path.is_file()]
    if lost := [path for path in none if not path.exists()]:
        yield (
            f"{len(lost)} images are links that lead nowhere, so they are left out: "
            f"{_listed(lost)}."
        )
    if odd := [path for path in none if path.exists()]:
        yield (
            f"{len(odd)} images are no files but pipes, sockets or devices, so they are left out: "
            f"{_listed(odd)}."
        )


def _of_links(again: Sequence[Path]) -> Iterator[str]:
    """Links to folders that are read already."""
    if again:
        yield (
            f"{len(again)} links lead to folders that are read already, so they are left out: "
            f"{_listed(again)}."
        )


def _parts_of(folder: Path, images: list[Path]) -> tuple[Path, dict[Path, list[Path]]]:
    """The folder in which splits or classes lie, and the folders in it that hold images, with them.

    It has none where images lie beside them.
    """
    while True:
        named: dict[str, list[Path]] = {}
        for image in images:
            named.setdefault(image.parts[len(folder.parts)], []).append(image)
        parts = {folder / name: own for name, own in named.items()}
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
    if classes == [root]:
        raise CircuitError(
            f"the images lie directly in {root} ({_listed([Path(i.name) for i in images])}), so no "
            "folder says their class. Make one folder a class in it; or give the folder "
            "above it, if this one is a class."
        )
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


def _of_empty(
    roots: Iterable[Path], images: list[Path], unreadable: Iterable[Path]
) -> Iterator[str]:
    """Classes or splits without images, which are none."""
    full, broken = _above(images), _above(unreadable)
    empty = [
        place
        for root in sorted(roots)
        for place in sorted(root.iterdir())
        if place.is_dir() and not place.name.startswith((".", "__")) and place not in full
    ]
    if empty:
        what = " that can be read" if broken & set(empty) else ""
        names = _listed([place.relative_to(place.parents[1]) for place in empty])
        yield f"these folders hold no images{what}, so they are left out: {names}."


def _above(files: Iterable[Path]) -> set[Path]:
    """The folders that files lie in, at any depth."""
    own = {file.parent for file in files}
    return own.union(*(place.parents for place in own))


def _listed(paths: Sequence[Path]) -> str:
    rest = len(paths) - _TOLD
    return ", ".join(map(str, paths[:_TOLD])) + (f" and {rest} more" if rest > 0 else "")
