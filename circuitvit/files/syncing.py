"""What is written reaches the disk before it is given its name."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


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
    """The same for all that is in a folder."""
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
