"""A finished save that waits in a hidden folder, and its end, whoever carries it out.

`COMMIT` is renamed into the target when all new files are in it, under `files`. From then on they
count. `plan.json` says which of them go where, which old ones go, and of which folder (by device
and number of the file system) it is: a folder that was copied or unpacked has another number, so
nobody can plant a plan in it.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from circuitvit.errors import CircuitError
from circuitvit.files.locks import held, staging
from circuitvit.files.reading import read_json
from circuitvit.files.troubles import bad_path, in_one_line
from circuitvit.files.writing import files_in, sync, write_json

COMMIT = ".circuitvit-commit"
PLAN, FILES = "plan.json", "files"
CONFIG = "config.json"
"""What libraries read first: it goes first and comes last, so that they never see half."""


def commit(files: Path, target: Path, *, remove: Iterable[str], place: Path) -> None:
    """Put files into a folder among others, all at once.

    Args:
        files: the folder that holds them.
        target: where they go.
        remove: names of old files that go.
        place: a hidden folder on the same disk as `files`.

    Raises:
        CircuitError: a file or folder is in the way.
        OSError: the disk is full, or the target can't be written to.
    """
    put, gone = list(files_in(files)), sorted(remove)
    for name in (*put, *gone):
        _check_way(target, name)
    beside = place / COMMIT
    beside.mkdir()
    write_json(beside / PLAN, {"folder": _number(target), "put": put, "remove": gone})
    sync(beside / PLAN)
    with held(target / COMMIT, "a save", wait=True):
        _finish(target)
        files.rename(beside / FILES)
        try:
            beside.rename(target / COMMIT)
        except OSError as cause:
            if cause.errno != errno.EXDEV:  # the same folder, mounted at another place
                raise
            with staging(target, target) as there:
                shutil.copytree(beside, there / COMMIT)
                (there / COMMIT).rename(target / COMMIT)
        sync(target)
        _finish(target)


def finish_save(folder: str | os.PathLike[str]) -> None:
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


def _finish(target: Path) -> None:
    """Carry out the plan in `COMMIT`, from wherever another process was killed."""
    waiting = target / COMMIT
    if not os.path.lexists(waiting):
        return
    if waiting.is_symlink() or not waiting.is_dir():
        raise CircuitError(f"{waiting} is no folder of a save. Move it away.")
    if (waiting / PLAN).exists():
        _carry_out(target, waiting)
        (waiting / PLAN).unlink()
    elif left := list(files_in(waiting)):
        raise CircuitError(f"{waiting} holds {left[0]}, but no {PLAN}. Move that folder away.")
    shutil.rmtree(waiting, ignore_errors=True)


def _carry_out(target: Path, waiting: Path) -> None:
    plan = read_json(waiting / PLAN, what="plan of a save")
    put, remove = _names(waiting, plan, "put"), _names(waiting, plan, "remove")
    if plan.get("folder") != _number(target):
        raise CircuitError(
            f"{waiting} is of another folder, from which this one was copied. Finish it there by "
            "loading, and copy again; or remove it."
        )
    for name in (*put, *remove):
        _check_way(target, name)
        _check_way(waiting / FILES, name)
    left = [name for name in put if os.path.lexists(waiting / FILES / name)]
    for name in (*remove, *(name for name in left if name == CONFIG)):
        (target / name).unlink(missing_ok=True)
    for name in sorted(left, key=lambda name: name == CONFIG):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (waiting / FILES / name).replace(target / name)
    for parent in {(target / name).parent for name in put}:
        sync(parent)


def _number(folder: Path) -> list[int]:
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def _names(waiting: Path, plan: object, key: str) -> list[str]:
    names = plan.get(key) if isinstance(plan, dict) else None
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise CircuitError(f"{waiting / PLAN} is no plan of a save. Remove its folder.")
    return names


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or bad_path(name) is not None:
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts


def _check_way(folder: Path, name: str) -> None:
    """Refuse a name in whose way there is a link or a file, or a folder in its place."""
    place = folder / name
    for parent in [p for p in place.parents if p != folder and p.is_relative_to(folder)]:
        if parent.is_symlink() or (os.path.lexists(parent) and not parent.is_dir()):
            raise CircuitError(
                f"cannot write {place}: {parent} is no folder of its own. Move it, or name another "
                "place."
            )
    if place.is_dir() and not place.is_symlink():
        raise CircuitError(f"cannot write {place}: it is a folder. Name another place, or move it.")
