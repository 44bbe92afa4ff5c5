"""One search on all pairs of images: at once where memory allows, else chunk by chunk.

Where not all pairs fit, many decisions are looked at in one pass over the chunks. A chunk's run
costs as much as some hundred decisions, so it must not be built for each of them. In a pass the
first chunk runs ahead and decides by its own pairs; the others follow the same decisions, one chunk
after the other. Their values are averaged, and hold up to the first decision that all of them
together take otherwise; the next pass begins there. What a pass has found about later edges is the
best guess of the next one. When memory runs out all the same, chunks are halved and the question is
asked again.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from circuitvit.discover.acdc.decisions import Decisions, Seen
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.engine.incremental import IncrementalRun, Trial
from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import writers_of
from circuitvit.images import Pairs
from circuitvit.intervene.batching import (
    NO_MEMORY,
    images_that_fit,
    is_out_of_memory,
)
from circuitvit.intervene.task import PatchingTask

SHORTEST, LONGEST = 128, 4096
"""Decisions in one pass."""


LookAhead = Callable[[PatchingTask, Tensor, list[float], Mapping[str, bool], int], list[Seen]]
"""Follows a search from where it is, on some of its pairs.

Its arguments are the problem with these pairs alone, the model's logits of them, their own D at
each decision so far, which edges go (of others these pairs decide), and how many decisions to look
at.
"""


@dataclass
class SearchPasses:
    """The passes of a search.

    Attributes:
        task: what is asked, of all pairs.
        full: the model's logits, of all pairs.
        decisions: those taken so far, over all pairs; the caller's, who adds to them.
        look_ahead: follows the search on some pairs.
        images: how many pairs at once.
    """

    task: PatchingTask
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

    def settle(self, removed: bool) -> None:
        """Record whether the edge that was asked for last is removed."""
        seen, values = self._ahead.popleft()
        for own, value in zip(self._own, values, strict=True):
            own.append(value)
        if seen.removed == removed:
            return
        self._length = max(SHORTEST, self._length // 2)
        self._ahead.clear()

    def _pass(self) -> None:
        pairs, count = self.task.pairs, math.ceil(len(self.task.pairs) / self.images)
        measured = [value for value in self.decisions.measured if value is not None]
        self._own = self._own or [list(measured) for _ in range(count)]
        guesses = {edge: rise < self.decisions.tau for edge, rise in self._rises.items()}
        total, chunks = [0.0] * self._length, list[list[Seen]]()
        for own, start in zip(self._own, range(0, len(pairs), self.images), strict=True):
            some = slice(start, start + self.images)
            task = replace(self.task, pairs=pairs.subset(some))
            seen = self.look_ahead(task, self.full[some], own, guesses, self._length)
            if not chunks:
                guesses |= {each.edge: each.removed for each in seen}
            chunks.append(seen)
            share = len(task.pairs) / len(pairs)
            total = [a + share * b.value for a, b in zip(total, seen, strict=False)]
        self._note(total, chunks)

    def _note(self, total: list[float], chunks: list[list[Seen]]) -> None:
        """Store a pass's values, and predict from them the decisions after the first surprise."""
        current, surprise = self.decisions.current, False
        for value, *seen in zip(total, *chunks, strict=False):
            led = seen[0]
            rise = value - current
            self._rises[led.edge] = rise
            current = value if led.removed else current
            surprise = surprise or led.removed != (rise < self.decisions.tau)
            self._ahead.append((replace(led, value=value), [each.value for each in seen]))
        if not surprise:
            self._length = min(LONGEST, 2 * self._length)


SHARE_OF_ADDRESSES = 1.2
"""How much of what an address space has left may be planned for, where one run takes all pairs.

A run holds less than `numbers_an_image`, unless every edge stays, and what is refused there loses
no decision: the search goes on in chunks.
"""
NUMBERS_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""Numbers that one reader reads in the removals tried together; on a CPU more leaves the cache."""
MOMENTS = 32
"""The most removals that are tried together."""

Answer = TypeVar("Answer")
MakePasses = Callable[[Tensor, int], SearchPasses]
"""Of the model's logits and how many pairs go at once."""


class Chunks:
    """The incremental runs of all pairs.

    Args:
        task: what is asked.
        kept: the kept edges, by split reader; the caller's, who removes what is settled.
        opened: units that were tried before.
        images: how many pairs at once; None goes by the memory that is free.
        speedups: what may be done to be fast.
        full: the model's logits, where they are known.
        passes: makes the passes over chunks; None lets memory run out.
    """

    def __init__(
        self,
        task: PatchingTask,
        kept: Mapping[str, Collection[int]],
        *,
        opened: Collection[str] = (),
        images: int | None,
        speedups: Speedups,
        full: Tensor | None = None,
        passes: MakePasses | None,
    ) -> None:
        self._task, self._kept, self._speedups = task, kept, speedups
        self._images = _alike(len(task.pairs), images or _planned(task))
        self._names = writers_of(task.vit.config)
        self._opened = list(opened)
        self.unit: str | None = None
        self._readers: Sequence[str] = ()
        self._order: Sequence[int] = ()
        self._whole: IncrementalRun | None = None
        self._trial: Trial | None = None
        self._make_passes = passes
        self._passes: SearchPasses | None = None
        self._full = self._logits_of_model() if full is None else full
        pairs = task.pairs
        if self._images == len(pairs):
            self._whole = self._within_memory(lambda: self._run(pairs))

    def _logits_of_model(self) -> Tensor:
        vit, clean = self._task.vit, self._task.pairs.clean
        return self._insisted(
            lambda: torch.cat([vit(images) for images in clean.split(self._images)])
        )

    def _insisted(self, work: Callable[[], Answer]) -> Answer:
        """The result of the work, in chunks as small as the memory requires."""
        while True:
            answer = self._within_memory(work)
            if answer is not None:
                return answer

    def _run(self, pairs: Pairs) -> IncrementalRun:
        ablated = self._task.ablated_writes(pairs)
        vit, opened = self._task.vit, self._opened
        return IncrementalRun(
            vit, pairs.clean, ablated, self._kept, opened=opened, speedups=self._speedups
        )

    def _within_memory(self, work: Callable[[], Answer]) -> Answer | None:
        """The result of the work, or None if memory ran out and chunks have been halved."""
        try:
            return work()
        except (RuntimeError, MemoryError) as cause:
            if self._make_passes is None or not is_out_of_memory(cause):
                raise
            if self._images == 1:
                raise CircuitError(NO_MEMORY) from cause
        self._whole, self._trial, self._passes = None, None, None
        self._images = self._images // 2
        return None

    @property
    def streams(self) -> bool:
        """Whether the pairs are processed chunk by chunk."""
        return self._whole is None

    def loss_of_model(self) -> float:
        """The metric of the untouched model, over all pairs."""
        return self._loss(self._full, self._task.pairs, self._full)

    def loss_now(self) -> float:
        """The metric of the current circuit, over all pairs."""

        def logits() -> Tensor:
            if self._whole is not None:
                return self._whole.logits
            chunks = self._task.chunks(self._images)
            return torch.cat([self._run(pairs).logits for pairs in chunks])

        return self._loss(self._insisted(logits), self._task.pairs, self._full)

    def largest_logit(self) -> float:
        """The largest |logit| of the untouched model."""
        return float(self._full.abs().max())

    def _loss(self, logits: Tensor, pairs: Pairs, full: Tensor) -> float:
        losses = self._task.loss(logits, pairs, full)
        return float(losses.double().sum()) / len(self._task.pairs)

    def open(self, unit: str) -> None:
        """Take up a unit; those before it are done with."""
        if self.unit is not None:
            self._opened.append(self.unit)
        self.unit = unit
        self._with_whole(lambda run: run.open(unit))

    def begin(self, readers: Sequence[str], order: Sequence[int]) -> None:
        """Take up a reader of that unit, to try its writers in this order."""
        self._readers, self._order = readers, order
        self._with_whole(lambda run: run.begin(readers, order))

    def _with_whole(self, work: Callable[[IncrementalRun], None]) -> None:
        run = self._whole
        if run is not None:
            self._within_memory(lambda: work(run))

    def most_moments(self) -> int:
        """The most removals that are tried together."""
        if self._speedups.states is not None:
            return self._speedups.states
        return 1 if self._whole is None else self._batch(self._whole)

    def _batch(self, run: IncrementalRun) -> int:
        """The number of removals in one batch of a run."""
        kind = self._task.vit.positions.device.type
        most = NUMBERS_AT_ONCE.get(kind, NUMBERS_AT_ONCE["cuda"])
        return max(1, min(MOMENTS, most // run.numbers_read()))

    def losses(self, first: int, moments: int, keeps: Collection[int]) -> list[float]:
        """The metric after each of some removals in a row, over all pairs.

        Chunk by chunk, that of the first alone.
        """

        def ask() -> list[float]:
            if self._whole is None:
                return [self.loss_of_model() + self._passing().value(self._edge(first))]
            self._trial = self._whole.try_removals(first, moments, keeps)
            pairs = self._task.pairs
            return [self._loss(logits, pairs, self._full) for logits in self._trial.logits]

        return self._insisted(ask)

    def _passing(self) -> SearchPasses:
        if self._passes is None:
            assert self._make_passes is not None
            self._passes = self._make_passes(self._full, self._images)
        return self._passes

    def _edge(self, index: int) -> str:
        reader = self._readers[0] if len(self._readers) == 1 else self.unit
        return f"{self._names[self._order[index]]}->{reader}"

    def settle(self, removed: int | None, kept: Sequence[int]) -> None:
        """Let it be as decided after `losses`.

        Args:
            removed: index in the question of the last writer that goes, with all before it that
                are not kept.
            kept: the writers that stay.
        """
        self._within_memory(lambda: self._settle(removed, kept))
        self._trial = None

    def _settle(self, removed: int | None, kept: Sequence[int]) -> None:
        run, trial = self._whole, self._trial
        if self._passes is not None:
            self._passes.settle(removed is not None)
        if run is None or trial is None:
            return
        for place in kept:
            run.keep(place)
        if removed is not None:
            run.commit(trial, removed)


def _alike(pairs: int, most: int) -> int:
    """The number of pairs in a chunk, so that all chunks are about equally large."""
    return math.ceil(pairs / math.ceil(pairs / most))


def _planned(task: PatchingTask) -> int:
    """The number of pairs to try at once: all of them if they may fit."""
    pairs = len(task.pairs)
    hopeful = images_that_fit(task.vit, of_addresses=SHARE_OF_ADDRESSES)
    return pairs if pairs <= hopeful else images_that_fit(task.vit)
