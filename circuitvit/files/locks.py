"""Hidden folders that a process holds while it works, and their removal after a kill.

Such a folder is locked by `flock`, which the system releases however the process ends. So one that
can be locked by another process is litter.
"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from circuitvit.errors import CircuitError
from circuitvit.files.troubles import checked_path, in_one_line

try:
    import fcntl
except ImportError:  # Windows has none: nothing is locked, and no litter is cleared
    fcntl = None

ENDING = ".circuitvit-tmp"
_HERE = xxhash.xxh32_hexdigest(platform.node().encode())
"""This machine in the names of hidden folders: on a shared disk, locks tell nothing of others."""
_DAYS = 7
"""After so many days without a change, another machine's hidden folder is litter, too."""
_LONGEST = 30
"""Letters of a target's name that go into the name of a hidden folder."""


@contextmanager
def held(path: str | os.PathLike[str], work: str, *, wait: bool = False) -> Iterator[None]:
    """Let one process at a time work on a path; the lock ends with the process.

    Args:
        path: what is worked on; its folder is made.
        work: what is done, for the message, such as `a training`.
        wait: whether to wait for the other process instead of refusing.

    Raises:
        CircuitError: another process works on it, or the folder can't be written.
    """
    target = checked_path(path)
    if fcntl is None:
        yield
        return
    place = target.parent / f".{_short(target)}.{_HERE}.lock{ENDING}"
    with in_one_line(target, every=True):
        made = make_folders(target.parent)
        handle = _locked_by_name(place, wait=wait)
    if handle is None:
        raise CircuitError(
            f"{work} is at work on {target} in another process. Wait for it to end, or name "
            "another place."
        )
    try:
        yield
    finally:
        with suppress(OSError):
            place.rmdir()
        _release(handle)
        remove_empty(made)


@contextmanager
def staging(parent: Path, target: Path) -> Iterator[Path]:
    """Yield a new hidden folder in `parent` for the new state of `target`; remove it afterwards.

    When the block succeeds, what killed processes left in `parent` goes, too.

    Raises:
        OSError: it can't be made.
    """
    place, handle = _new(parent, f".{_short(target)}.{_HERE}.")
    try:
        yield place
        clear_litter(parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if handle is not None:
            _release(handle)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those that it is in; returns those that were missing, the inner first.

    Raises:
        OSError: one can't be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove folders in which nothing was written after all."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def clear_litter(parent: Path) -> None:
    """Remove the hidden folders that killed processes left in a folder."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if is_staging(entry.name) and entry.is_dir(follow_symlinks=False):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if f".{_HERE}." in entry.name or age > _DAYS * 86400:
                    _clear(Path(entry.path))


def is_staging(name: str) -> bool:
    """Whether a file's name is that of a hidden folder of this module."""
    return name.startswith(".") and name.endswith(ENDING)


def _clear(place: Path) -> None:
    with suppress(OSError):
        handle = os.open(place, os.O_RDONLY)
        try:
            if _lock(handle, wait=False) is True and _is_at(handle, place):
                shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(handle)


def _new(parent: Path, start: str) -> tuple[Path, int | None]:
    """A new folder and its open, locked handle."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=start, suffix=ENDING, dir=parent))
        if fcntl is None:
            return place, None
        handle = _open(place)
        if handle is not None and _lock(handle, wait=True) is not False and _is_at(handle, place):
            return place, handle
        if handle is not None:  # taken for litter in the moment before it was locked
            os.close(handle)


def _locked_by_name(place: Path, *, wait: bool) -> int | None:
    while True:
        place.parent.mkdir(parents=True, exist_ok=True)  # who held it may have taken it away
        with suppress(FileExistsError, FileNotFoundError):
            place.mkdir()
        handle = _open(place)
        if handle is None:
            continue
        if _lock(handle, wait=wait) is False:
            os.close(handle)
            return None
        if _is_at(handle, place):
            return handle
        os.close(handle)  # the one who held it before took it away


def _open(place: Path) -> int | None:
    try:
        return os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _is_at(handle: int, place: Path) -> bool:
    try:
        found = place.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Lock an open folder; False if another holds it, None where nothing can be locked."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a network's file system without locks
        return None
    return True


def _release(handle: int) -> None:
    """Unlock, also for processes that were forked meanwhile and hold the folder open too."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _short(target: Path) -> str:
    """The beginning of a target's name, and digits of a hash of the whole name."""
    begin = target.name.lstrip(".")[:_LONGEST]
    return f"{begin}.{xxhash.xxh32_hexdigest(os.fsencode(target.name))}"
