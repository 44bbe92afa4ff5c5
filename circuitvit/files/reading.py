"""JSON files, read within bounds of size, depth and numbers."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files.troubles import readable_path

MOST_BYTES = 128 * 2**20
"""The scores of all edges of a ViT-g, the largest model in use, take half of it."""
MOST_PARTS = 5 * 10**6
"""Lists and dicts in a file."""
DEEPEST = 64
"""Lists and dicts inside one another; files of circuitvit have at most 8."""
_DIGITS = 40
_LARGE = re.compile(rb"[eE]\+?[0-9]{3}")


def read_json(path: str | os.PathLike[str], *, what: str, finite: bool = True) -> Any:
    """Read a JSON file; `what` names its kind in the error message.

    Args:
        path: the file.
        what: what it holds, in words.
        finite: whether NaN and Infinity, which JSON has not, are refused.

    Raises:
        CircuitError: there is no such file, it is not whole JSON, or it is larger, deeper or holds
            longer numbers than any file of circuitvit.
    """
    source = readable_path(path, what)
    try:
        return parsed(_bytes(source), finite=finite)
    except FileNotFoundError as cause:
        raise CircuitError(f"no {what} at {source}: there is no such file.") from cause
    except OSError as cause:
        raise CircuitError(f"cannot read the {what} at {source}: {cause.strerror}.") from cause
    except (ValueError, RecursionError) as cause:
        raise CircuitError(
            f"{source} is not a whole {what}: {cause}. It was cut short or is another kind "
            "of file; make it again or take it from a backup."
        ) from cause


def parsed(text: bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not whole JSON in UTF-8, or beyond the bounds.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has {len(text):,} bytes, at most {MOST_BYTES:,} are read")
    parts = text.count(b"[") + text.count(b"{")
    if parts > MOST_PARTS:
        raise ValueError(f"it has {parts:,} lists and dicts, at most {MOST_PARTS:,} are read")
    try:
        # An editor on Windows may have put a byte-order mark before it.
        value = json.loads(
            text.decode("utf-8-sig"),
            parse_int=_whole,
            parse_constant=_refused if finite else None,
            parse_float=_finite if finite and _LARGE.search(text) else None,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    _check_depth(value)
    if b"\\u" in text:
        _check_letters(value)
    return value


def _bytes(source: Path) -> bytes:
    """The contents of a regular file, if it is not too large."""
    with open(source, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if found.st_size > MOST_BYTES:
            raise ValueError(f"it has {found.st_size:,} bytes, at most {MOST_BYTES:,} are read")
        return file.read(MOST_BYTES + 1)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would wait for one."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the number {digits[:_DIGITS]}… has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _refused(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict | list):
                items = part.values() if isinstance(part, dict) else part
                inner += [item for item in items if isinstance(item, dict | list)]
        level = inner


def _check_letters(value: Any) -> None:
    """Refuse halves of letters, which no file in UTF-8 can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half of a letter (a lone surrogate)") from None
