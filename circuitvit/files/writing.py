"""Writes one file beside its place, syncs it and renames it: a kill never leaves half a file."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files.locks import make_folders, remove_empty, staging
from circuitvit.files.troubles import checked_path, in_one_line


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk.

    Raises:
        OSError: there is no room for it, or the disk fails.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        if path.is_dir():
            with suppress(OSError):  # some file systems can't do it for folders
                os.fsync(handle)
        else:
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync everything in a folder."""
    for path in files_in(folder):
        sync(folder / path)
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def files_in(folder: Path) -> Iterator[str]:
    """The names of all files in a folder and below, with `/` between the parts."""
    for parent, _, names in os.walk(folder):
        inner = Path(parent).relative_to(folder)
        yield from sorted((inner / name).as_posix() for name in names)


def with_ordinary_mode(path: Path) -> None:
    """Give a file the mode that `open` gives; libraries make private ones."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh path on the same disk; when the block succeeds, it becomes `path`.

    Where there is a `path`, the new one is on the disk, not only in memory, before the old one
    goes. After a power cut a file that was new may be missing or damaged.

    Raises:
        CircuitError: the folder can't be made or written to, or the disk is full. `path` is then as
            it was.
    """
    target = checked_path(path)
    with in_one_line(target):
        if target.is_dir():
            raise CircuitError(f"cannot write {target}: Is a directory. Name a file, not a folder.")
        made = make_folders(target.parent)
        try:
            with staging(target.parent, target) as place:
                beside = place / target.name
                yield beside
                with_ordinary_mode(beside)
                if target.exists():  # a new file's loss at a power cut loses nothing old
                    sync(beside)
                beside.replace(target)
        finally:
            remove_empty(made)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` in one step and return the path."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON to `path` in one step and return the path.

    Raises:
        CircuitError: the file can't be written, or a value is none of JSON's; it is named.
    """
    return write_text(path, _encoded(value, indent=1) + "\n")


def plain_json(value: Any) -> Any:
    """A value as its JSON is read again: lists for tuples, texts for the keys of dicts.

    Raises:
        CircuitError: a value is none of JSON's; it is named.
    """
    return json.loads(_encoded(value))


def _encoded(value: Any, *, indent: int | None = None) -> str:
    try:
        text = json.dumps(
            value, indent=indent, ensure_ascii=False, allow_nan=False, default=_number
        )
        text.encode("utf-8")
    except (TypeError, ValueError) as cause:
        place = next(_unencodable(value, ""), f"a value ({cause})")
        raise CircuitError(
            f"nothing was written, since a file of JSON can't hold {place}. Put a number, text, "
            "list or dict there."
        ) from cause
    return text


def _number(value: Any) -> Any:
    """Python's own number for numpy's or torch's."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(type(value).__name__)


def _unencodable(value: Any, where: str) -> Iterator[str]:
    """The values that JSON has not, each with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unencodable(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _unencodable(item, f"{where}[{place}]")
    else:
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False, default=_number).encode()
        except (TypeError, ValueError):
            yield f"{where or 'it'} = {value!r}"
