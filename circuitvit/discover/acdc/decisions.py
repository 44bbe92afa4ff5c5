"""The decisions of a search, and the rule for the next edge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from circuitvit.errors import CircuitError

TIE = {
    torch.float16: 0.1 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 0.1 * torch.finfo(torch.bfloat16).eps,
    torch.float32: 1e-6,
    torch.float64: 1e-12,
}
"""Decisions closer to τ than this are reported as ties; relative to max(1, |D|, |logits|).

A model in half precision is searched in single, so for it this is what its own arithmetic could not
tell apart; 0.1 ε is about the largest error of D that was seen in bfloat16.
"""


@dataclass
class Decisions:
    """The decisions so far.

    Attributes:
        tau: how much D may rise by a removal.
        tie: how close to τ a rise has to be for a tie.
        start: D of the edges that the search starts from.
        scale: the largest |logit| of the model, to which rounding is relative.
        full: the metric of the model itself.
        current: D of the circuit as it stands.
        measured: D without each edge, in the order in which they were tried; None where an edge
            went without being asked.
        rises: what each kept edge would have cost.
        ties: edges whose rise is τ within the numerical error.
    """

    tau: float
    tie: float
    start: float = 0.0
    scale: float | None = None
    full: float | None = None
    current: float = 0.0
    measured: list[float | None] = field(default_factory=list)
    rises: dict[str, float] = field(default_factory=dict)
    ties: list[str] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        """The number of edges that were tried."""
        return sum(value is not None for value in self.measured)

    def record_baseline(self, full: float, scale: float) -> None:
        """Record the model's metric and largest |logit|, or check them against an earlier record.

        Raises:
            CircuitError: the metric gives something else than in the search that is taken up.
        """
        if self.full is not None and not math.isclose(self.full, full, rel_tol=1e-3, abs_tol=1e-3):
            raise CircuitError(
                f"the metric of the model was {self.full:z.4g} in the search that is to be taken "
                f"up, and is {full:z.4g} now: it is another metric of the same name. Name another "
                "file, or remove it to start anew."
            )
        self.full = full
        self.scale = scale if self.scale is None else self.scale

    def decide(self, name: str, value: float) -> bool:
        """Decide whether an edge is removed, given D without it."""
        if not math.isfinite(value):
            raise CircuitError(
                f"the metric became NaN or infinite without {name}; the weights may be too large."
            )
        rise = value - self.current
        self.measured.append(value)
        if abs(rise - self.tau) <= self.tie * max(1.0, abs(value), self.scale or 0.0):
            self.ties.append(name)
        if rise < self.tau:
            self.current = value
            return True
        self.rises[name] = rise
        return False

    def drop(self) -> None:
        """Record that an edge into a node that nobody reads was removed without being tried."""
        self.measured.append(None)


@dataclass(frozen=True)
class Seen:
    """The value of one edge over some of the pairs.

    Attributes:
        edge: its name.
        value: D without it, over these pairs.
        removed: whether the decisions after it take it for removed.
    """

    edge: str
    value: float
    removed: bool


class EnoughSeen(Exception):  # noqa: N818 - not an error
    """Raised when the requested number of decisions has been looked at."""


@dataclass
class Led(Decisions):
    """Decisions that are given, or else made by a few of the pairs alone.

    Attributes:
        guesses: whether edges are removed.
        known: how many decisions have been taken already.
        length: how many to look at.
        seen: what was found.
    """

    guesses: Mapping[str, bool] = field(default_factory=dict)
    known: int = 0
    length: int = 1
    seen: list[Seen] = field(default_factory=list)

    def decide(self, name: str, value: float) -> bool:
        """What was guessed, or else what these pairs alone decide."""
        removed = self.guesses.get(name, value - self.current < self.tau)
        self.current = value if removed else self.current
        if self.known > 0:
            self.known -= 1
            return removed
        self.seen.append(Seen(name, value, removed))
        if len(self.seen) == self.length:
            raise EnoughSeen
        return removed
