"""The file in which a search notes what it has measured, so that a kill loses a few seconds."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.errors import CircuitError, in_short
from circuitvit.files.records import SEARCH
from circuitvit.files.restoring import load_record

SECONDS_APART = 2.0
SHARE_OF_TIME = 0.02
"""How much of the time may go into saving."""


class ResumeFile:
    """What a search measured, in a file.

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
    """What the file holds."""

    OPTIONAL: ClassVar = frozenset({"full"})  # which came later

    question: Mapping[str, Any]
    start: float
    scale: float | None
    measured: tuple[float | None, ...]
    full: float | None = None
