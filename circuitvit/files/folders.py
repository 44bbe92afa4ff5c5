"""Several files of a folder, written all at once: a kill leaves all old or all new ones.

They are made in a hidden folder. Where the target holds nothing else, the two folders change places
in one step. Where it holds other people's files, is theirs too, or is a link, a mount point or the
working directory, the files are put in by `commits`.
"""

import ctypes
import errno
import glob
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from circuitvit.errors import CircuitError
from circuitvit.files.commits import commit, finish_save
from circuitvit.files.locks import clear_litter, make_folders, remove_empty, staging
from circuitvit.files.troubles import checked_path, in_one_line
from circuitvit.files.writing import files_in, sync, sync_tree, with_ordinary_mode

_AT_CURRENT, _EXCHANGE = -100, 2


@contextmanager
def writing_folder(
    folder: str | os.PathLike[str], *, owned: Collection[str] = ()
) -> Iterator[Path]:
    """Yield an empty folder; when the block succeeds, its files are the target's, all at once.

    After a power cut, a target that was there is the old or the new one; one that was new may be
    missing or damaged, which digests and checksums tell.

    Args:
        folder: the target; made if need be. Other files in it stay as they are.
        owned: patterns of files that an earlier save wrote; those not written anew go. `*` stands
            for letters of one name, not for `/`.

    Raises:
        CircuitError: the target can't be written to, or the disk is full. It is then as it was.
    """
    target = checked_path(folder)
    with in_one_line(target):
        if target.exists() and not target.is_dir():
            raise CircuitError(f"cannot write {target}: it is a file. Name a folder, not a file.")
        finish_save(target)
        there = _is_held_in_place(target)
        made = [] if there else make_folders(target.parent)
        try:
            with staging(target if there else target.parent, target) as place:
                beside = place / (target.resolve().name or "folder")
                beside.mkdir()
                with _named_as(target, beside):
                    yield beside
                for name in files_in(beside):
                    with_ordinary_mode(beside / name)
                if target.exists():  # a new folder's loss at a power cut loses nothing old
                    sync_tree(beside)
                _publish(beside, target, owned, exchange=not there)
        finally:
            remove_empty(made)
        clear_litter(target)


@contextmanager
def _named_as(target: Path, beside: Path) -> Iterator[None]:
    """Say of what can't be written into the hidden folder where it was to go."""
    try:
        yield
    except CircuitError as cause:
        if f"{beside}" not in str(cause):
            raise
        told = re.sub(rf"{re.escape(str(beside))}\S*/(?=\S)", f"{target}/", str(cause))
        raise CircuitError(told.replace(str(beside), str(target))) from cause


def _is_held_in_place(target: Path) -> bool:
    """Whether a folder can't change places with another."""
    if not target.is_dir():
        return False
    return (
        target.is_symlink()
        or os.path.ismount(target)
        or _is_current(target)
        or not os.access(target.parent, os.W_OK)
    )


def _is_current(target: Path) -> bool:
    """Whether the working directory is a folder, or in it."""
    try:
        return Path.cwd().is_relative_to(target.resolve())
    except FileNotFoundError:  # the working directory was removed
        return False


def _publish(beside: Path, target: Path, owned: Collection[str], *, exchange: bool) -> None:
    names = list(files_in(beside))
    if exchange and _appears(beside, target):
        return
    clear_litter(target)
    patterns = [*map(glob.escape, names), *owned]
    ours, is_all = _ours(target, patterns)
    if exchange and is_all and _is_alike(beside, target) and _exchanged(beside, target):
        _give_back(beside, target, ours)
        return
    commit(beside, target, remove=ours - {*names}, place=beside.parent)


def _is_alike(beside: Path, target: Path) -> bool:
    """Whether a new folder has the owner and group of the old one, which has no further rights."""
    new, old = beside.stat(), target.stat()
    rights = os.listxattr(target) if hasattr(os, "listxattr") else []
    return (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid) and not any(
        "acl" in name for name in rights
    )


def _appears(beside: Path, target: Path) -> bool:
    """Give the hidden folder its name, where there is none of that name."""
    if os.path.lexists(target):
        return False
    try:
        beside.rename(target)
    except OSError as cause:
        if cause.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another made it in this moment
            return False
        raise
    sync(target.parent)
    return True


def _exchanged(beside: Path, target: Path) -> bool:
    """Let two folders change places in one step; False where the system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    beside.chmod(target.stat().st_mode & 0o7777)
    if rename(_AT_CURRENT, os.fsencode(beside), _AT_CURRENT, os.fsencode(target), _EXCHANGE) != 0:
        return False
    sync(target.parent)
    return True


def _give_back(old: Path, target: Path, ours: Collection[str]) -> None:
    """Move files that others wrote into the old folder during the exchange to the new one."""
    for name in list(files_in(old)):
        if name not in ours and not (target / name).exists():
            with suppress(OSError):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (old / name).rename(target / name)


def _ours(target: Path, patterns: Sequence[str]) -> tuple[set[str], bool]:
    """The files of a folder that patterns name, and whether there is nothing else."""
    deepest = max((pattern.count("/") for pattern in patterns), default=0)
    found, is_all = set[str](), True
    for parent, inner, files in os.walk(target):
        place = Path(parent).relative_to(target)
        inside_it = [(place / name).as_posix() for name in files]
        ours = {name for name in inside_it if _matches(name, patterns)}
        found |= ours
        is_all &= len(ours) == len(files) and bool(files or inner)
        is_all &= not any((Path(parent) / name).is_symlink() for name in inner)
        if len(place.parts) == deepest:
            is_all &= not inner
            inner.clear()
    return found, is_all


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(_matches_one(name.split("/"), pattern.split("/")) for pattern in patterns)


def _matches_one(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))
