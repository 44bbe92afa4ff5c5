"""The records of an incremental run: what readers read, what a trial would change."""

from collections.abc import Collection
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from circuitvit.discover.rows import Rows
from circuitvit.discover.state import Stream
from circuitvit.edge_graph import Node


@dataclass
class Read:
    """What an opened reader reads now.

    Attributes:
        reader: which.
        rows: of the stream that it needs.
        kept: the writers that it reads; the caller's.
        x: its copy of the stream, at those rows.
        updates: how often a difference was added since it was summed.
        peak: the greatest length of x that was seen since.
    """

    reader: Node
    rows: Rows
    kept: Collection[int]
    x: Stream
    updates: int = 0
    peak: Tensor | None = None

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
        made: by unit, its new q, k, v, pattern and z, or what an MLP writes.
        shifts: by writer's index, how its z, or what an MLP writes, differs from what is committed.
        moved: the same in the stream, where it was needed.
    """

    moments: int
    logits: Float[Tensor, "moment image class"]
    reads: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
