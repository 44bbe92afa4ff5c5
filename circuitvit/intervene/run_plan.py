"""Plans the runs of several circuits of one model, so that nothing is computed twice.

What a unit writes follows from what its readers read, and that from the writers that they keep. So
two circuits that agree upstream of a unit share what it writes. Units that reach no logits are left
out; so are units that read nothing but ablated values under `patch`, as they write their own
ablated value, the one of the corrupt image. No tensors here: `circuit_runs` does the work.

Not every token of a write is needed. `logits` may read the class token only, or, where pooling
comes before the final LayerNorm, the mean of some tokens. A unit that only `logits` reads needs
computing only there; so does an MLP, or a head's query, that only such units read. Keys and values
are needed at every token.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitvit.config import ViTConfig
from circuitvit.graph.edge_graph import (
    Node,
    Qkv,
    node_named,
    places_of,
    readers_of,
    units_of,
    writers_before,
    writers_of,
)

Rows = Literal["all", "class", "mean"]


def rows_of_logits(config: ViTConfig, *, pooled: bool) -> Rows:
    """The tokens that `logits` needs."""
    if pooled and config.pooling == "class":
        return "class"
    if pooled and config.fc_norm:
        return "mean"
    return "all"


def rows_read(reader: Node, written: Rows) -> Rows:
    """The tokens that a reader needs, if `written` are needed of its unit's write.

    The mean of what an MLP writes needs all that it reads, and so do keys and values; a query is
    needed at the tokens at which its head writes.
    """
    if written == "mean" and reader.kind != "logits":
        return "all"
    return "all" if reader.part in ("k", "v") else written


def rows_together(needs: Iterable[Rows]) -> Rows:
    """The tokens that several readers of one writer need."""
    different = set(needs)
    return different.pop() if len(different) == 1 else "all"


def narrowed(
    x: Float[Tensor, "*any token width"], has: Rows, needs: Rows, pools_from: int
) -> Float[Tensor, "*any row width"]:
    """The rows that are needed, of a tensor that has `has`; the mean is one row."""
    if has == needs:
        return x
    assert has == "all"
    if needs == "class":
        return x[..., :1, :]
    return x[..., pools_from:, :].mean(dim=-2, keepdim=True)


KeptWriters = dict[str, list[int]]
"""By reader (q, k and v apart), the indices of the writers that it reads, ascending."""


MANY = 8
"""With fewer writers kept than these, and than half of all, their sum is quicker made afresh."""


class PlannedRead(NamedTuple):
    """The planned input of a reader.

    Attributes:
        layer: the sub-layer that reads it: 2·block for heads, then the MLP; last come `logits`.
        rows: of the stream that are needed.
        kept: the writes that are kept, by number, in forward order.
    """

    layer: int
    rows: Rows
    kept: tuple[int, ...]


class PlannedWrite(NamedTuple):
    """The planned write of a writer.

    Attributes:
        place: index of the writer.
        rows: of what it writes that are needed.
        reads: what it reads, by number; q, k and v of a head.
    """

    place: int
    rows: Rows
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Steps:
    """One circuit.

    Attributes:
        writes: by sub-layer, the writes that it needs.
        final: what `logits` read.
    """

    writes: tuple[tuple[int, ...], ...]
    final: int


class RunPlan:
    """The work for some circuits.

    Args:
        config: the model's shape.
        consistent: whether the ablated values are those of one run of the untouched model, as under
            `patch`.

    Attributes:
        reads: everything that is read; reads are named by their index.
        writes: everything that is written; the first is what `embed` writes.
        parents: for each read, one of an earlier sub-layer that it goes on from, with the same
            writers kept as far as that goes; None where that saves nothing.
        circuits: one for each call of `add`.
        last_read: by parent, the last circuit that goes on from it.
        last_write: by write, the last circuit that needs it.
    """

    def __init__(self, config: ViTConfig, *, consistent: bool) -> None:
        self.config = config
        self._consistent = consistent
        self.reads: list[PlannedRead] = []
        self.parents: list[int | None] = []
        self.writes = [PlannedWrite(0, "all", ())]
        self.circuits: list[Steps] = []
        self.last_read: dict[int, int] = {}
        self.last_write: dict[int, int] = {}
        self._reads: dict[PlannedRead, int] = {}
        self._writes: dict[PlannedWrite, int] = {}
        before = writers_before(config)
        self._layers = _layers(config)
        firsts = [before[units[0].unit] if units else None for units in self._layers]
        for layer in reversed(range(len(firsts))):  # an absent sub-layer reads what the next does
            firsts[layer] = firsts[layer] or firsts[layer + 1]
        self.before = [first for first in firsts if first is not None]

    def add(self, edges: Iterable[str], qkv: Qkv = "split") -> None:
        """Plan the circuit that keeps these edges."""
        kept = _kept(self.config, edges, qkv)
        rows, places = self._rows(kept), places_of(self.config)
        made, steps = {0: 0}, []
        for layer, units in enumerate(self._layers[:-1]):
            step = []
            for unit in units:
                if unit.name not in rows:
                    continue
                reads = tuple(
                    self._read(layer, rows_read(node, rows[unit.name]), kept[node.name], made)
                    for node in _readers(unit)
                )
                if self._consistent and not any(self.reads[read].kept for read in reads):
                    continue
                place = places[unit.name]
                made[place] = self._write(PlannedWrite(place, rows[unit.name], reads))
                step.append(made[place])
            steps.append(tuple(step))
        final = self._read(len(self._layers) - 1, rows["logits"], kept["logits"], made)
        self.last_write |= dict.fromkeys(made.values(), len(self.circuits))
        self.circuits.append(Steps(tuple(steps), final))

    def _rows(self, kept: KeptWriters) -> dict[str, Rows]:
        """Which rows are needed of what each unit writes; units that reach no logits are absent."""
        logits = rows_of_logits(self.config, pooled=True)
        rows: dict[str, Rows] = {"logits": logits}
        needs: dict[int, set[Rows]] = {}
        for place in kept["logits"]:
            needs.setdefault(place, set()).add(logits)
        for place in reversed(range(1, len(writers_of(self.config)))):
            if place not in needs:
                continue
            unit = node_named(writers_of(self.config)[place])
            rows[unit.name] = needed = rows_together(needs[place])
            for reader in _readers(unit):
                read = rows_read(reader, needed)
                for earlier in kept[reader.name]:
                    needs.setdefault(earlier, set()).add(read)
        return rows

    def _write(self, write: PlannedWrite) -> int:
        if write not in self._writes:
            self._writes[write] = len(self.writes)
            self.writes.append(write)
        return self._writes[write]

    def _read(self, layer: int, rows: Rows, places: list[int], made: dict[int, int]) -> int:
        read = PlannedRead(layer, rows, tuple(made[place] for place in places if place in made))
        if read not in self._reads:
            self._reads[read] = len(self.reads)
            self.parents.append(self._parent(read))
            self.reads.append(read)
        index = self._reads[read]
        parent = self.parents[index]
        if parent is not None:
            self.last_read[parent] = len(self.circuits)
        return index

    def _parent(self, read: PlannedRead) -> int | None:
        """What one of the two sub-layers before reads, if it keeps the same and that is much."""
        if len(read.kept) < min(MANY, self.before[read.layer] / 2):
            return None
        present = [layer for layer in range(read.layer) if self._layers[layer]]
        for layer in reversed(present[-2:]):
            end = bisect_left(read.kept, self.before[layer], key=lambda w: self.writes[w].place)
            for rows in ("all", read.rows):
                earlier = self._reads.get(PlannedRead(layer, rows, read.kept[:end]))
                if earlier is not None:
                    return earlier
        return None


def _layers(config: ViTConfig) -> list[tuple[Node, ...]]:
    """The units of each sub-layer, and `logits`."""
    layers: list[list[Node]] = [[] for _ in range(2 * config.depth)]
    for node in map(node_named, units_of(config)):
        assert node.block is not None
        layers[2 * node.block + (node.kind == "mlp")].append(node)
    return [*map(tuple, layers), (node_named("logits"),)]


def _readers(unit: Node) -> tuple[Node, ...]:
    if unit.kind != "head":
        return (unit,)
    return tuple(node_named(f"{unit.name}.{part}") for part in "qkv")


def _kept(config: ViTConfig, edges: Iterable[str], qkv: Qkv) -> KeptWriters:
    places = places_of(config)
    kept: KeptWriters = {name: [] for name in readers_of(config, qkv)}
    for name in edges:
        writer, reader = name.split("->")
        kept[reader].append(places[writer])
    for row in kept.values():
        row.sort()
    if qkv == "split":
        return kept
    return {part.name: row for name, row in kept.items() for part in _readers(node_named(name))}
