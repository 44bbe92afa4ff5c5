"""The file in which a search notes what it has measured, so that a kill loses a few seconds."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitvit.discover.decisions import Decisions
from circuitvit.errors import CircuitError
from circuitvit.records import SEARCH

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
        known = SEARCH.read(self._path)
        theirs = known.get("question", {})
        different = [key for key in self._question if theirs.get(key) != self._question[key]]
        if different:
            told = ", ".join(f"{k} {theirs.get(k)!r} there, {self._question[k]!r} here"
                             for k in different)  # fmt: skip
            raise CircuitError(
                f"{self._path} belongs to another search ({told}). Name another file, or remove "
                "it to start anew."
            )
        measured, start, scale = (known.get(key) for key in ("measured", "start", "scale"))
        full = known.get("full")
        if (
            not isinstance(measured, list)
            or not isinstance(start, int | float)
            or not all(isinstance(value, int | float | None) for value in (*measured, scale, full))
        ):
            raise CircuitError(
                f"{self._path} is not a whole record of a search: it was damaged or altered. "
                "Remove it, or name another, to start anew."
            )
        self.earlier, self.start, self.scale, self.full = measured, float(start), scale, full

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
