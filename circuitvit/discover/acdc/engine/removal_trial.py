"""The records of an incremental run: what readers read, what a trial would change."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.discover.acdc.engine.folded_weights import Measured
from circuitvit.graph.edge_graph import Node
from circuitvit.intervene.needed_tokens import Rows

DRIFT = 160
"""Roundings, relative to what is read, that are borne before it is summed afresh: 1e-5 in
float32."""


@dataclass
class OpenedRead:
    """What an opened reader reads now.

    Attributes:
        reader: which.
        rows: of the stream that it needs.
        kept: the writers that it reads; the caller's.
        now: its copy of the stream, at those rows.
        updates: how often a difference was added since it was summed afresh.
        peak: the greatest squared length since.
        least: the squared length below which rounding would matter.
    """

    reader: Node
    rows: Rows
    kept: Collection[int]
    now: Measured
    updates: int = 0
    peak: Tensor = field(init=False)
    least: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.move(self.now, fresh=True)

    def move(self, now: Measured, *, fresh: bool) -> None:
        """Read something else from now on; fresh is what was summed and not moved."""
        self.now = now
        self.updates = 0 if fresh else self.updates + 1
        self.peak = now.squares if fresh else torch.maximum(self.peak, now.squares)
        self.least = self.peak * ((self.updates + 2) / DRIFT) ** 2

    @property
    def name(self) -> str:
        """The reader's name."""
        return self.reader.name


@dataclass
class Trial:
    """What some removals, each on top of those before it, would change.

    Attributes:
        moments: how many removals there are; tensors hold the last one's images first.
        logits: of the circuit after each removal.
        reads: by reader that follows, its new copy of the stream.
        fresh: those of them that were summed afresh.
        made: by unit, its new q, k, v, pattern and z, or what an MLP writes.
        writes: by writer's index, its new z, or what an MLP writes.
        shifts: by writer's index, how its z, or what an MLP writes, differs from what is committed.
        moved: the same in the stream, where it was needed.
    """

    moments: int
    logits: Float[Tensor, "moment image class"]
    reads: dict[str, Measured] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    made: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    writes: dict[int, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
