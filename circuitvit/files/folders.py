"""Several files of a folder, written all at once: a kill leaves all old or all new ones.

They are made in a hidden folder. Where the target holds nothing else, the two folders change places
in one step. Where it holds other people's files, or is a link, a mount point or the working
directory, the hidden folder is renamed to `COMMIT` inside the target, with a plan of what goes
where: from then on the new files count, and whoever comes next, to read or to write, finishes the
plan.
"""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from circuitvit.errors import CircuitError
from circuitvit.files.locks import (
    clear_litter,
    held,
    make_folders,
    remove_empty,
    staging,
)
from circuitvit.files.outputs import inside
from circuitvit.files.reading import read_json
from circuitvit.files.syncing import files_in, sync, sync_tree, with_ordinary_mode
from circuitvit.files.troubles import checked_path, in_one_line
from circuitvit.files.writing import write_json

COMMIT = ".circuitvit-commit"
PLAN = "plan.json"
CONFIG = "config.json"
"""What libraries read first: it goes first and comes last, so that they never see half."""
_AT_CURRENT, _EXCHANGE = -100, 2


@contextmanager
def writing_folder(
    folder: str | os.PathLike[str], *, owned: Collection[str] = ()
) -> Iterator[Path]:
    """Yield an empty folder; when the block succeeds, its files are the target's, all at once.

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
        settle(target)
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


def settle(folder: str | os.PathLike[str]) -> None:
    """Finish what a killed process had all but written into a folder, if there is such a thing.

    Raises:
        CircuitError: it can't be finished, as in a folder that can't be written to.
    """
    target = Path(folder)
    if not os.path.lexists(target / COMMIT):
        return
    try:
        with in_one_line(target), held(target / COMMIT, "a save", wait=True):
            _finish(target)
    except CircuitError as cause:
        raise CircuitError(
            f"a save into {target} was interrupted when it was all but done, and can't be finished "
            f"here: {cause}"
        ) from cause


def _is_held_in_place(target: Path) -> bool:
    """Whether a folder can't change places with another."""
    if not target.is_dir():
        return False
    here = Path.cwd()
    real = target.resolve()
    return (
        target.is_symlink()
        or os.path.ismount(target)
        or here == real
        or here.is_relative_to(real)
        or not os.access(target.parent, os.W_OK)
    )


def _publish(beside: Path, target: Path, owned: Collection[str], *, exchange: bool) -> None:
    names = list(files_in(beside))
    if exchange and _appears(beside, target):
        return
    clear_litter(target)
    for name in names:
        if (target / name).is_dir() and not (target / name).is_symlink():
            raise CircuitError(
                f"cannot write {target / name}: it is a folder. Name another place, or move it."
            )
    ours, is_all = _ours(target, [*names, *owned], {*names})
    if exchange and is_all and _exchanged(beside, target):
        _give_back(beside, target, ours)
        return
    write_json(beside / PLAN, {"put": names, "remove": sorted(ours - {*names})})
    sync(beside)
    with held(target / COMMIT, "a save", wait=True):
        _finish(target)
        beside.rename(target / COMMIT)
        sync(target)
        _finish(target)


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
    """Move what others wrote into the old folder in that moment to the new one."""
    for name in list(files_in(old)):
        if name not in ours and not (target / name).exists():
            with suppress(OSError):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (old / name).rename(target / name)


def _ours(target: Path, patterns: Sequence[str], names: set[str]) -> tuple[set[str], bool]:
    """The files of a folder that are written anew or owned, and whether there is nothing else."""
    deepest = max((pattern.count("/") for pattern in patterns), default=0)
    found, is_all = set[str](), True
    for parent, inner, files in os.walk(target):
        place = Path(parent).relative_to(target)
        inside_it = [(place / name).as_posix() for name in files]
        ours = {name for name in inside_it if name in names or _matches(name, patterns)}
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


def _finish(target: Path) -> None:
    """Carry out the plan in `COMMIT`, from wherever another process was killed."""
    commit = target / COMMIT
    if not os.path.lexists(commit):
        return
    if (commit / PLAN).exists():
        plan = read_json(commit / PLAN, what="plan of a save")
        put, remove = _names(target, plan, "put"), _names(target, plan, "remove")
        for place in (*remove, *(p for p in put if p == target / CONFIG and _waits(p, target))):
            place.unlink(missing_ok=True)
        for place in sorted(put, key=lambda place: place == target / CONFIG):
            if _waits(place, target):
                place.parent.mkdir(parents=True, exist_ok=True)
                (commit / place.relative_to(target)).replace(place)
        for parent in {place.parent for place in put}:
            sync(parent)
        (commit / PLAN).unlink()
    elif left := list(files_in(commit)):
        raise CircuitError(f"{commit} holds {left[0]}, but no {PLAN}. Remove that folder.")
    shutil.rmtree(commit, ignore_errors=True)


def _waits(place: Path, target: Path) -> bool:
    """Whether the new file is still in the hidden folder."""
    return (target / COMMIT / place.relative_to(target)).exists()


def _names(target: Path, plan: object, key: str) -> list[Path]:
    names = plan.get(key) if isinstance(plan, dict) else None
    if not isinstance(names, list):
        raise CircuitError(f"{target / COMMIT / PLAN} is no plan of a save. Remove its folder.")
    return [inside(target, name) for name in names]
