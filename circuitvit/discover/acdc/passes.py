"""Many decisions in one pass over pairs that do not fit at once.

A chunk's run costs as much as some hundred decisions, so it must not be built for each of them. In
a pass the first chunk runs ahead and decides as it sees fit; the others are led along the same
decisions, one chunk after the other. What they say is added up, and holds up to the first decision
that all of them together take otherwise; the next pass begins there. What a pass has found about
later edges is the best guess of the next one.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from circuitvit.discover.acdc.decisions import Decisions, Seen
from circuitvit.discover.task import Problem

SHORTEST, LONGEST = 128, 4096
"""Decisions in one pass."""


LookAhead = Callable[[Problem, Tensor, list[float], Mapping[str, bool], int], list[Seen]]
"""Follows a search from where it is, on some of its pairs.

Its arguments are the problem with these pairs alone, the model's logits of them, their own D at
each decision so far, which edges go (of others these pairs decide), and how many decisions to look
at.
"""


@dataclass
class SearchPasses:
    """The passes of a search.

    Attributes:
        problem: what is asked, of all pairs.
        full: the model's logits, of all pairs.
        decisions: those taken so far, over all pairs; the caller's, who adds to them.
        look_ahead: follows the search on some pairs.
        images: how many pairs at once.
    """

    problem: Problem
    full: Tensor
    decisions: Decisions
    look_ahead: LookAhead
    images: int
    _ahead: deque[tuple[Seen, list[float]]] = field(default_factory=deque)
    _own: list[list[float]] = field(default_factory=list)
    _rises: dict[str, float] = field(default_factory=dict)
    _length: int = 2 * SHORTEST

    def value(self, edge: str) -> float:
        """D without an edge, which is the next to be decided on, over all pairs."""
        if not self._ahead:
            self._pass()
        seen, _ = self._ahead[0]
        assert seen.edge == edge
        return seen.value

    def settle(self, goes: bool) -> None:
        """Let the edge that was asked for last go or stay."""
        seen, values = self._ahead.popleft()
        for own, value in zip(self._own, values, strict=True):
            own.append(value)
        if seen.goes == goes:
            return
        self._length = max(SHORTEST, self._length // 2)
        self._ahead.clear()

    def _pass(self) -> None:
        pairs, count = self.problem.pairs, math.ceil(len(self.problem.pairs) / self.images)
        measured = [value for value in self.decisions.measured if value is not None]
        self._own = self._own or [list(measured) for _ in range(count)]
        guesses = {edge: rise < self.decisions.tau for edge, rise in self._rises.items()}
        total, chunks = [0.0] * self._length, list[list[Seen]]()
        for own, start in zip(self._own, range(0, len(pairs), self.images), strict=True):
            some = slice(start, start + self.images)
            problem = replace(self.problem, pairs=pairs.subset(some))
            seen = self.look_ahead(problem, self.full[some], own, guesses, self._length)
            if not chunks:
                guesses |= {each.edge: each.goes for each in seen}
            chunks.append(seen)
            share = len(problem.pairs) / len(pairs)
            total = [a + share * b.value for a, b in zip(total, seen, strict=False)]
        self._note(total, chunks)

    def _note(self, total: list[float], chunks: list[list[Seen]]) -> None:
        """Keep what a pass has seen, and guess from it what comes after the first surprise."""
        current, surprise = self.decisions.current, False
        for value, *seen in zip(total, *chunks, strict=False):
            led = seen[0]
            rise = value - current
            self._rises[led.edge] = rise
            current = value if led.goes else current
            surprise = surprise or led.goes != (rise < self.decisions.tau)
            self._ahead.append((replace(led, value=value), [each.value for each in seen]))
        if not surprise:
            self._length = min(LONGEST, 2 * self._length)
