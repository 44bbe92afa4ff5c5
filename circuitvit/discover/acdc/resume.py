"""The file in which a search records what it has measured, so that a kill loses a few seconds.

A search is known again by the names of its callables. A function of a module has one: its module
and name. A lambda, a function within a function and an object whose repr doesn't show its settings
have none: another may be called the same.
"""

import inspect
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.errors import CircuitError, in_short
from circuitvit.files.records import SEARCH
from circuitvit.files.restoring import load_record

SECONDS_APART = 2.0
SHARE_OF_TIME = 0.02
"""How much of the time may go into saving."""


class ResumeFile:
    """The values that a search has measured, in a file.

    Args:
        path: the file; it is written at once, so that a bad path is noticed before the work.
        question: what was asked; a file that answers another question is refused.

    Raises:
        CircuitError: the file is of another search, or can't be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], question: Mapping[str, Any]) -> None:
        self._path, self._question = Path(path), dict(question)
        self._saved = time.monotonic()
        self._apart = SECONDS_APART
        self.earlier: list[float | None] = []
        self.start = 0.0
        self.scale: float | None = None
        self.full: float | None = None
        if self._path.exists():
            self._read()
        else:
            self._write(Decisions(tau=0.0, tie=0.0))

    def _read(self) -> None:
        known = load_record(self._path, SEARCH, _File)
        theirs = known.question
        different = [key for key in self._question if theirs.get(key) != self._question[key]]
        if different:
            told = ", ".join(
                f"{k} {in_short(theirs.get(k))} there, {in_short(self._question[k])} here"
                for k in different
            )
            raise CircuitError(
                f"{self._path} belongs to another search ({told}). Name another file, or remove "
                "it to start anew."
            )
        self.earlier, self.start = list(known.measured), known.start
        self.scale, self.full = known.scale, known.full

    def note(self, decisions: Decisions, *, now: bool = False) -> None:
        """Save what was measured so far, if it is time to."""
        began = time.monotonic()
        replayed = len(decisions.measured) >= len(self.earlier)
        if replayed and (now or began - self._saved >= self._apart):
            self._write(decisions)
            self._saved = time.monotonic()
            self._apart = max(SECONDS_APART, (self._saved - began) / SHARE_OF_TIME)

    def _write(self, decisions: Decisions) -> None:
        found = {name: getattr(decisions, name) for name in ("start", "scale", "full", "measured")}
        SEARCH.write(self._path, {"question": self._question, **found})


@dataclass(frozen=True)
class _File:
    """The fields of the file."""

    OPTIONAL: ClassVar = frozenset({"full"})  # which came later

    question: Mapping[str, Any]
    start: float
    scale: float | None
    measured: tuple[float | None, ...]
    full: float | None = None


def lasting_name(value: object) -> str | None:
    """The name that identifies a callable; None if no name does.

    Names are told as they are. Partial functions are told with their arguments, objects by their
    own `__repr__`.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, partial):
        return _of_partial(value)
    if inspect.ismethod(value) and not isinstance(value.__self__, type):
        owner = _of_object(value.__self__)
        return None if owner is None else f"{owner}.{value.__name__}"
    name = getattr(value, "__qualname__", None)
    if name is None:
        return _of_object(value)
    return None if "<" in name else f"{getattr(value, '__module__', None)}.{name}"


def checked_name(value: object, option: str) -> str:
    """The lasting name of an option's value.

    Raises:
        CircuitError: it has none.
    """
    name = lasting_name(value)
    if name is None:
        called = getattr(value, "__qualname__", type(value).__qualname__)
        raise CircuitError(
            f"{option} is {called}, which resume can't tell from others that are called the same, "
            "so it might take theirs for its own. Give a function that is defined at the top of a "
            "module, or an object whose __repr__ tells its settings; or leave resume out."
        )
    return name


def _of_partial(value: "partial[Any]") -> str | None:
    given = [("", lasting_name(value.func)), *(("", _literal(item)) for item in value.args)]
    given += [(f"{name}=", _literal(item)) for name, item in sorted(value.keywords.items())]
    if any(told is None for _, told in given):
        return None
    return f"partial({', '.join(f'{name}{told}' for name, told in given)})"


def _literal(value: object) -> str | None:
    """An argument as text; None if the text would be incomplete."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        told = [_literal(item) for item in value]
        return None if None in told else f"({', '.join(map(str, told))})"
    return lasting_name(value) if callable(value) else None


def _of_object(value: object) -> str | None:
    if type(value).__repr__ is object.__repr__ or isinstance(value, nn.Module):
        return None  # a module's tells no weights
    told = repr(value)
    return None if " at 0x" in told else f"{type(value).__module__}.{told}"
