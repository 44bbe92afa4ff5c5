"""Checks of outputs before the work whose results they are for."""

import os
from pathlib import Path

from circuitvit.errors import CircuitError
from circuitvit.files.locks import staging
from circuitvit.files.troubles import bad_path, checked_path, in_one_line


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a file that could not be written after long work; nothing is left behind.

    Raises:
        CircuitError: the file can't be written there, or a folder is there.
    """
    target = checked_path(path)
    with in_one_line(target, every=True):
        if target.is_dir():
            raise CircuitError(f"cannot write {target}: it is a folder. Name a file, not a folder.")
        _try(target)


def check_folder_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a folder that could not be written after long work; nothing is left behind.

    Raises:
        CircuitError: the folder can't be made or written to, or a file is there.
    """
    target = checked_path(path)
    with in_one_line(target, every=True):
        if target.exists() and not target.is_dir():
            raise CircuitError(f"cannot write {target}: it is a file. Name a folder, not a file.")
        _try(target / "it" if target.is_dir() else target)


def _try(target: Path) -> None:
    """Make a hidden folder where the target's first missing part would be."""
    missing, parent = target, target.parent
    while not parent.exists():
        if parent == parent.parent:
            break
        missing, parent = parent, parent.parent
    with staging(parent, missing) as place, (place / "it").open("wb") as file:
        file.write(b"\0")


def inside(folder: str | os.PathLike[str], name: object) -> Path:
    """The place of a file that a record names: in its folder or below, links followed.

    Raises:
        CircuitError: the name is absolute, leads out of the folder, or is no path.
    """
    base = Path(folder)
    problem = bad_path(name) if isinstance(name, str) else f"{name!r} is no text"
    if problem is None:
        assert isinstance(name, str)
        place = base / name
        parts = Path(name).parts
        leaves = not parts or Path(name).is_absolute() or ".." in parts
        if not leaves and place.resolve().is_relative_to(base.resolve()):
            return place
        problem = f"{name!r} leads out of it"
    raise CircuitError(
        f"a file in {base} names another one, but {problem}: only names inside the folder are "
        "followed. Get the folder from its source again."
    )
