"""The decisions of ACDC, one after the other, and how they can be taken up again.

All that was decided follows from what D was without each edge, in the order in which the edges were
tried; so that list of numbers is the whole memory of a search. A search that was interrupted
replays it, and a search at another τ replays it up to the first decision that differs.
"""

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from circuitvit.discover.acdc.chunks import MOMENTS, Chunks, SearchPasses
from circuitvit.discover.acdc.decisions import Decisions, EnoughSeen, Led, Seen
from circuitvit.discover.acdc.engine.circuit_state import has_reader
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import (
    node_named,
    places_of,
    readers_of,
    units_of,
    writers_of,
)
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.vit import PARTS

NO_RECORD = (
    "what was measured before does not fit this search, so the file was damaged or altered. Remove "
    "it, or name another, to start anew."
)

Advance = Callable[..., None]


class EdgeSearch:
    """ACDC over edges.

    Args:
        settings: the task and the options.
        decisions: taken so far; those of an earlier search are taken again without being asked.
        keep_all: whether all edges are predicted to stay, where nothing else predicts it.
        full: the model's logits, for a search that is led on a few of the pairs.
    """

    def __init__(
        self,
        settings: SearchSettings,
        decisions: Decisions,
        *,
        keep_all: bool = False,
        full: Tensor | None = None,
    ) -> None:
        config = settings.task.vit.config
        self._settings, self._task, self._keep_all = settings, settings.task, keep_all
        self._logits = full
        self._names, self._places = writers_of(config), places_of(config)
        self._kept: dict[str, set[int]] = {name: set() for name in readers_of(config)}
        for name in settings.edges:
            writer, reader = name.split("->")
            for part in split(reader):
                self._kept[part].add(self._places[writer])
        self._decisions = decisions
        self._earlier, decisions.measured = deque(decisions.measured), []
        self._chunks: Chunks | None = None
        self._tried: list[str] = []
        self._full = 0.0
        self._moments = MOMENTS
        if settings.within is not None and not self._earlier:
            self._take_up([])
            assert self._chunks is not None
            decisions.start = decisions.current = self._chunks.loss_now() - self._full
        decisions.current = decisions.start

    def edges(self, advance: Advance) -> tuple[str, ...]:
        """Decide on every edge; `advance` is called after each measured decision."""
        decisions, done = self._decisions, list[str]()
        for unit in ("logits", *reversed(units_of(self._task.vit.config))):
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
        if node_named(unit).kind != "head" or self._settings.qkv == "joint":
            return [unit]
        return [f"{unit}.{part}" for part in reversed(PARTS)]

    def _drop(self, reader: str, advance: Advance) -> None:
        """Remove all edges of a reader whose node nobody reads, without measuring."""
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
                self._task,
                self._kept,
                opened=done,
                images=self._settings.images,
                speedups=self._settings.speedups,
                full=self._logits,
                passes=self._passes if self._logits is None else None,
            )
            self._full = self._chunks.loss_of_model()
            self._decisions.record_baseline(self._full, self._chunks.largest_logit())

    def _passes(self, full: Tensor, images: int) -> SearchPasses:
        return SearchPasses(self._task, full, self._decisions, self._look_ahead, images)

    def _look_ahead(
        self,
        task: PatchingTask,
        full: Tensor,
        own: list[float],
        guesses: Mapping[str, bool],
        length: int,
    ) -> list[Seen]:
        """`circuitvit.discover.acdc.chunks.LookAhead`."""
        so_far, values = self._decisions, iter(own)
        taken = {name: name not in so_far.rises for name in self._tried}
        measured = [None if value is None else next(values) for value in so_far.measured]
        led = Led(
            so_far.tau, so_far.tie, so_far.start, measured=measured, length=length,
            guesses={**guesses, **taken}, known=len(taken),
        )  # fmt: skip
        stay = {name: 0.0 if goes else math.inf for name, goes in led.guesses.items()}
        settings = replace(
            self._settings, task=task, predict=defaultdict(float, stay), images=len(task.pairs)
        )
        search = EdgeSearch(settings, led, full=full)
        with contextlib.suppress(EnoughSeen):
            search.edges(lambda note="", steps=1: None)
        return led.seen

    def _writers(self, reader: str) -> list[int]:
        """The writers of a reader in the order in which they are tried."""
        places, scores = sorted(self._kept[split(reader)[0]], reverse=True), self._settings.order
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
        moments = len(losses)
        removed, kept, count = None, list[int](), 0
        for index, (place, loss) in enumerate(zip(asked, losses, strict=False)):
            goes = self._decide(reader, place, loss - self._full)
            removed = index if goes else removed
            kept += [] if goes else [place]
            count += 1
            advance(self._note())
            if goes == (place in keeps):
                break
        as_predicted = count == moments and kept == [p for p in asked[:count] if p in keeps]
        self._moments = min(MOMENTS, 2 * self._moments) if as_predicted else 1
        chunks.settle(removed, kept)
        return count

    def _stays(self, name: str) -> bool:
        predict = self._settings.predict
        if predict is None:
            return self._keep_all
        return abs(predict[name]) >= self._decisions.tau

    def _decide(self, reader: str, place: int, value: float) -> bool:
        name = f"{self._names[place]}->{reader}"
        removed = self._decisions.decide(name, value)
        self._tried.append(name)
        if removed:
            for part in split(reader):
                self._kept[part].discard(place)
        return removed

    def _note(self) -> str:
        return f"kept {len(self._decisions.rises)}"


def split(reader: str) -> tuple[str, ...]:
    """The readers that a reader stands for: q, k and v of a head that reads jointly."""
    node = node_named(reader)
    if node.kind != "head" or node.part is not None:
        return (reader,)
    return tuple(f"{reader}.{part}" for part in PARTS)


def in_common(measured: Sequence[float | None], start: float, tau: float, other: float) -> int:
    """The number of measured values that are also valid at another τ.

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
