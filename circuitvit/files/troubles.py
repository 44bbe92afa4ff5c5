"""The error of a file, in one line."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_OTHER = {
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.ENOTDIR: "A part of it is a file. Name a folder that can be written to.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENOTEMPTY: "Name a file, not a folder.",
    errno.EEXIST: "A part of it is a file. Name a folder that can be written to.",
}
_KNOWN = {*_NO_ROOM, *_UNWRITABLE, *_OTHER, errno.EIO, errno.ESTALE}
_IN_TEXT = re.compile(r"os error (\d+)|\[Errno (\d+)\]")


@contextmanager
def in_one_line(target: str | os.PathLike[str], *, every: bool = False) -> Iterator[None]:
    """Say in one line that a target can't be written, whatever library noticed it.

    Args:
        target: what is written.
        every: whether every error of the system is about writing, also that a file is missing.

    Raises:
        CircuitError: the system refused to write; a full disk is known in every error's causes.
    """
    try:
        yield
    except CircuitError as cause:
        if _code(cause) not in _NO_ROOM or str(cause).startswith("cannot write"):
            raise
        raise unwritable(target, cause) from cause
    except Exception as cause:
        known = _code(cause) in _KNOWN or _is_about(cause, Path(target))
        if not known and not (every and isinstance(cause, OSError)):
            raise
        raise unwritable(target, cause) from cause


def _is_about(cause: BaseException, target: Path) -> bool:
    """Whether the system refused something in the target's folder."""
    name: Any = cause.filename if isinstance(cause, OSError) else None
    return isinstance(name, str) and Path(name).is_relative_to(target.parent)


def unwritable(target: str | os.PathLike[str], cause: BaseException) -> CircuitError:
    """The error that says why a target can't be written, and what to do."""
    code = _code(cause)
    advice = _OTHER.get(code or 0, "Name a folder that can be written to.")
    if code in _NO_ROOM:
        advice = "Nothing was changed there. Make room, or name another place."
    reason = os.strerror(code) if code else str(cause)
    return CircuitError(f"cannot write {_shown(target)}: {reason}. {advice}")


def bad_path(path: object) -> str | None:
    """The reason why a value can't be a path, or None; the disk is not read."""
    try:
        given: Any = path
        text = os.fsdecode(given)
    except TypeError:
        return f"{path!r} is a {type(path).__name__}, expected a path"
    if "\0" in text:
        return f"{_shown(text)} holds the letter NUL, which no path can"
    if text != _encodable(text) and not _is_name_of_bytes(text):
        return f"{_shown(text)} holds half of a letter (a lone surrogate)"
    if len(os.fsencode(_encodable(text))) > 4095:
        return f"{_shown(text)} has more than 4,095 bytes, which no system takes"
    if any(len(os.fsencode(part)) > 255 for part in _encodable(text).split("/")):
        return f"{_shown(text)} has a part of more than 255 bytes, which no file system takes"
    return None


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path to write to.

    Raises:
        CircuitError: it can't be the path of a file.
    """
    problem = bad_path(path)
    if problem is not None:
        raise CircuitError(f"cannot write there: {problem}. Name another place.")
    return Path(path)


def readable_path(path: str | os.PathLike[str], what: str) -> Path:
    """A path to read from, with `~` for the home folder.

    Raises:
        CircuitError: it can't be the path of a file.
    """
    problem = bad_path(path)
    if problem is not None:
        raise CircuitError(f"no {what} there: {problem}.")
    try:
        return Path(path).expanduser()
    except RuntimeError as cause:
        raise CircuitError(f"no {what} at {_shown(path)}: {cause}.") from cause


def _is_name_of_bytes(text: str) -> bool:
    """Whether a text is Python's form of a file name that is not UTF-8."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _shown(path: str | os.PathLike[str]) -> str:
    text = _encodable(os.fspath(path)).replace("\0", "\\0")
    return text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}"


def _chain(cause: BaseException) -> Iterator[BaseException]:
    known: set[int] = set()
    step: BaseException | None = cause
    while step is not None and id(step) not in known:
        known.add(id(step))
        yield step
        step = step.__cause__ or step.__context__


def _code(cause: BaseException) -> int | None:
    """The system's number for what went wrong, from an error or those that it came from."""
    for step in _chain(cause):
        if isinstance(step, OSError) and step.errno:
            return step.errno
        found = _IN_TEXT.search(str(step))  # safetensors' errors and torch's have only text
        if found:
            return int(found[1] or found[2])
    return None


def unwritable_cache(cause: BaseException, *, source: str = "") -> str | None:
    """That a library can't write its cache, and what to do; None if that is not the cause.

    Args:
        cause: what the library raised.
        source: what was read; trouble with files in it is no trouble with the cache.
    """
    for step in _chain(cause):
        if isinstance(step, OSError) and step.errno in _UNWRITABLE and step.filename:
            place = str(step.filename)
            if not source or not Path(place).is_relative_to(Path(source)):
                return (
                    f"the cache can't be written: {step.strerror} at {place}. Make room or "
                    "permission there, or set HF_HOME (for torchvision TORCH_HOME) to a folder "
                    "that can be written"
                )
    return None
