"""The decisions of ACDC, one after the other, and how they can be taken up again.

All that was decided follows from what D was without each edge, in the order in which the edges were
tried; so that list of numbers is the whole memory of a search. A search that was interrupted
replays it, and a search at another τ replays it up to the first decision that differs.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from circuitvit.discover.chunks import MOMENTS, Chunks
from circuitvit.discover.problem import Problem
from circuitvit.discover.state import Speedups, has_reader
from circuitvit.edge_graph import (
    Qkv,
    edge_names_of,
    node_named,
    places_of,
    readers_of,
    units_of,
    writers_of,
)
from circuitvit.errors import CircuitError
from circuitvit.vit import PARTS

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
NO_RECORD = (
    "what was measured before does not fit this search, so the file was damaged or altered. Remove "
    "it, or name another, to start anew."
)

Advance = Callable[..., None]


@dataclass
class Decisions:
    """What was decided so far.

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
        """How many edges were asked for."""
        return sum(value is not None for value in self.measured)

    def stand_on(self, full: float, scale: float) -> None:
        """Note the model's own metric and largest |logit|, or see that they are as noted before.

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

    def goes(self, name: str, value: float) -> bool:
        """Decide on an edge, given D without it."""
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
        """An edge into a node that nobody reads goes without being asked."""
        self.measured.append(None)


class EdgeSearch:
    """ACDC over edges.

    Args:
        problem: what is asked.
        decisions: taken so far; those of an earlier search are taken again without being asked.
        qkv: granularity of the heads' readers.
        within: the edges to start from; None are all.
        order: scores by which the writers of each reader are tried, weakest first; None is the
            pinned order, latest first.
        predict: scores that predict which edges stay; None predicts that all go.
        keep_all: whether all are predicted to stay.
        images: how many pairs at once; None goes by the memory that is free.
        speedups: what may be done to be fast.
    """

    def __init__(
        self,
        problem: Problem,
        decisions: Decisions,
        *,
        qkv: Qkv,
        within: Iterable[str] | None = None,
        order: Mapping[str, float] | None = None,
        predict: Mapping[str, float] | None = None,
        keep_all: bool = False,
        images: int | None = None,
        speedups: Speedups | None = None,
    ) -> None:
        config = problem.vit.config
        self._problem, self._images, self._speedups = problem, images, speedups or Speedups()
        self._qkv: Qkv = qkv
        self._order, self._predict, self._keep_all = order, predict, keep_all
        self._names, self._places = writers_of(config), places_of(config)
        self._kept: dict[str, set[int]] = {name: set() for name in readers_of(config)}
        everything = edge_names_of(config, qkv)
        for name in everything if within is None else within:
            writer, reader = name.split("->")
            for part in split(reader):
                self._kept[part].add(self._places[writer])
        self._decisions = decisions
        self._earlier, decisions.measured = deque(decisions.measured), []
        self._chunks: Chunks | None = None
        self._full = 0.0
        self._moments = MOMENTS
        if within is not None and not self._earlier:
            self._take_up([])
            assert self._chunks is not None
            decisions.start = decisions.current = self._chunks.loss_now() - self._full
        decisions.current = decisions.start

    def edges(self, advance: Advance) -> tuple[str, ...]:
        """Decide on every edge; `advance` is called after each decision that was asked for."""
        decisions, done = self._decisions, list[str]()
        for unit in ("logits", *reversed(units_of(self._problem.vit.config))):
            readers = self._readers(unit)
            if unit != "logits" and not has_reader(self._kept, self._places[unit]):
                for reader in readers:
                    self._drop(reader, advance)
            else:
                for reader in readers:
                    self._try_reader(unit, reader, done, advance)
            done.append(unit)
        return tuple(decisions.rises)

    def _readers(self, unit: str) -> list[str]:
        """The readers of a unit in the pinned order."""
        if node_named(unit).kind != "head" or self._qkv == "joint":
            return [unit]
        return [f"{unit}.{part}" for part in reversed(PARTS)]

    def _drop(self, reader: str, advance: Advance) -> None:
        """Nobody reads this reader's node, so its edges go without being asked."""
        writers = len(self._kept[split(reader)[0]])
        for part in split(reader):
            self._kept[part].clear()
        for _ in range(writers):
            self._decisions.drop()
        again = min(writers, len(self._earlier))
        if any(self._earlier.popleft() is not None for _ in range(again)):
            raise CircuitError(NO_RECORD)
        advance(self._note(), steps=writers - again)

    def _try_reader(self, unit: str, reader: str, done: list[str], advance: Advance) -> None:
        order = self._writers(reader)
        while order and self._earlier:
            value = self._earlier.popleft()
            if value is None:
                raise CircuitError(NO_RECORD)
            self._decide(reader, order.pop(0), value)
        if not order:
            return
        if self._chunks is None or self._chunks.unit != unit:
            self._take_up(done)
            assert self._chunks is not None
            self._chunks.open(unit)
        self._chunks.begin(split(reader), order)
        first = 0
        while first < len(order):
            first += self._try_some(reader, order, first, self._chunks, advance)

    def _take_up(self, done: list[str]) -> None:
        """Make the runs, if there are none; units done with by replay are opened in them."""
        if self._chunks is None:
            self._chunks = Chunks(
                self._problem, self._kept, opened=done, images=self._images, speedups=self._speedups
            )
            self._full = self._chunks.loss_of_model()
            self._decisions.stand_on(self._full, self._chunks.largest_logit())

    def _writers(self, reader: str) -> list[int]:
        """The writers of a reader in the order in which they are tried."""
        places, scores = sorted(self._kept[split(reader)[0]], reverse=True), self._order
        if scores is not None:
            places.sort(key=lambda place: abs(scores[f"{self._names[place]}->{reader}"]))
        return places

    def _try_some(
        self, reader: str, order: list[int], first: int, chunks: Chunks, advance: Advance
    ) -> int:
        """Ask for some writers in a row, and decide up to the first that was not predicted."""
        moments = min(self._moments, chunks.most_moments(), len(order) - first)
        asked = order[first : first + moments]
        keeps = {place for place in asked if self._stays(f"{self._names[place]}->{reader}")}
        losses = chunks.losses(first, moments, keeps)
        removed, kept, count = None, list[int](), 0
        for index, place in enumerate(asked):
            goes = self._decide(reader, place, losses[index] - self._full)
            removed = index if goes else removed
            kept += [] if goes else [place]
            count += 1
            advance(self._note())
            if goes == (place in keeps):
                break
        as_predicted = count == moments and losses and (kept == [p for p in asked if p in keeps])
        self._moments = min(MOMENTS, 2 * self._moments) if as_predicted else 1
        chunks.settle(removed, kept)
        return count

    def _stays(self, name: str) -> bool:
        if self._predict is None:
            return self._keep_all
        return abs(self._predict[name]) >= self._decisions.tau

    def _decide(self, reader: str, place: int, value: float) -> bool:
        goes = self._decisions.goes(f"{self._names[place]}->{reader}", value)
        if goes:
            for part in split(reader):
                self._kept[part].discard(place)
        return goes

    def _note(self) -> str:
        return f"kept {len(self._decisions.rises)}"


def split(reader: str) -> tuple[str, ...]:
    """The readers that a reader stands for: q, k and v of a head that reads jointly."""
    node = node_named(reader)
    if node.kind != "head" or node.part is not None:
        return (reader,)
    return tuple(f"{reader}.{part}" for part in PARTS)


def in_common(measured: Sequence[float | None], start: float, tau: float, other: float) -> int:
    """How many of the measured values hold at another τ too.

    Up to the first decision that differs both searches are in the same state, and that decision's
    own value holds as well.
    """
    current = start
    for index, value in enumerate(measured):
        if value is None:
            continue
        rise = value - current
        if (rise < tau) != (rise < other):
            return index + 1
        if rise < tau:
            current = value
    return len(measured)
