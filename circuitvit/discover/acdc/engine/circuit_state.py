"""The state of an incremental run: what writers have written, and the sums that readers read.

Writers are held by name: heads by their z, MLPs and `embed` by what they write. A reader's input is
its base (constants and every ã before it) plus a_w − ã_w of the writers that it keeps.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import whole
from circuitvit.discover.acdc.engine.unit_forward import Measured, UnitForward, squares
from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import (
    Node,
    node_named,
    places_of,
    units_of,
    writers_before,
    writers_of,
)
from circuitvit.intervene.run_plan import Rows, narrowed, rows_of_logits, rows_read, rows_together
from circuitvit.intervene.writer_outputs import Writes
from circuitvit.models.sublayers import AttentionLayer, MlpLayer
from circuitvit.models.vit import ViT

DRIFT = 160
"""Roundings, relative to what is read, that are borne before it is summed afresh: 1e-5 in
float32."""


@dataclass
class OpenedRead:
    """The current input of an opened reader.

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
    """The effect of some removals, each on top of those before it.

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


StreamRows = Float[Tensor, "image _row width"]
KeptEdges = Mapping[str, Collection[int]]
"""By reader (q, k and v apart), the indices of the writers that it reads."""


def has_reader(kept: KeptEdges, place: int) -> bool:
    """Whether any kept edge leaves the writer of this index."""
    return any(place in writers for writers in kept.values())


@dataclass(frozen=True)
class Speedups:
    """The engine's speed-ups; none of them changes a decision.

    Attributes:
        pooled: run units only at the tokens that somebody needs.
        folded: fold LayerNorms into the projections that follow them.
        batched: all changed heads of a block in one product; None is on accelerators only.
        states: the most removals that are tried at once; None goes by size, as
            `experiments/bench_discovery.py` measured.
        low_rank: where a reader reads only a few heads of all that changes, work in their width in
            place of the stream's; None is on CPUs only.
    """

    pooled: bool = True
    folded: bool = True
    batched: bool | None = None
    states: int | None = None
    low_rank: bool | None = None

    def __post_init__(self) -> None:
        if self.states is not None and whole(self.states, "states") < 1:
            raise CircuitError(f"states is {self.states}, expected ≥ 1, or None.")


class State:
    """What the writers of a circuit write and what its readers read, kept up to date.

    Args:
        vit: the model.
        clean: the images.
        ablated: what ablated writers write.
        kept: the kept edges; a live view of the caller's.
        opened: units that were tried before, `logits` apart: those are run only where needed.
        speedups: what may be done.
    """

    def __init__(
        self,
        vit: ViT,
        clean: Float[Tensor, "image channel _height _width"],
        ablated: Writes,
        kept: KeptEdges,
        opened: Collection[str],
        speedups: Speedups,
    ) -> None:
        self.vit, self.kept, self.opened = vit, kept, set(opened)
        self.units = UnitForward(vit, folded=speedups.folded)
        self.names, self.places = writers_of(vit.config), places_of(vit.config)
        self._before = writers_before(vit.config)
        self.rows: dict[str, Rows] = dict.fromkeys(self.names, "all")
        self.rows["logits"] = rows_of_logits(vit.config, pooled=speedups.pooled)
        for name in reversed(units_of(vit.config)):
            if name in self.opened:
                self.find_rows(name)
        self._ablated = self._by_writer(ablated)
        self.writes: dict[str, Tensor] = {"embed": self.units.plain(vit.embed(clean))}
        self._bases: dict[str, Tensor] = {}
        self._prefixes: Tensor | None = None
        self._lengths: dict[str, Tensor] = {}
        self._find_bases()

    def _by_writer(self, writes: Writes) -> dict[str, Tensor]:
        values = {"embed": self.units.plain(writes.embed)}
        for block, (z, mlp) in enumerate(zip(writes.z, writes.mlp, strict=True)):
            if z is not None:
                values |= {f"a{block}.h{head}": z[:, head] for head in range(z.shape[1])}
            if mlp is not None:
                values[f"m{block}"] = self.units.plain(mlp)
        return values

    def _find_bases(self) -> None:
        """Sum constants and ablated values: what each sub-layer reads with no edge kept."""
        units, dtype = self.units, self.vit.positions.dtype
        base = self._ablated["embed"].double()

        for layer in units.layers:
            if isinstance(layer, AttentionLayer):
                self._bases[layer.name] = base.to(dtype)
                for name in layer.units:
                    node = node_named(name)
                    base = base + units.in_stream(node, self._ablated[node.name])
            elif isinstance(layer, MlpLayer):
                self._bases[layer.name] = base.to(dtype)
                base = base + self._ablated[layer.name]
            if isinstance(layer.constants, Tensor):
                base = base + units.plain(layer.constants)
        self._bases["logits"] = base.to(dtype)

    def find_rows(self, unit: str) -> Rows:
        """Find which rows of a unit its kept readers need."""
        place = self.places[unit]
        readers = [node_named(name) for name, kept in self.kept.items() if place in kept]
        needs: list[Rows] = [rows_read(reader, self.rows[reader.unit]) for reader in readers]
        self.rows[unit] = rows_together(needs) if needs else "all"
        return self.rows[unit]

    def narrow(self, x: Tensor, has: Rows, needs: Rows) -> Tensor:
        """The rows that are needed; one row that stands for all tokens stays as it is."""
        if x.shape[-2] == 1:
            return x
        return narrowed(x, has, needs, self.units.pools_from)

    def difference(self, place: int, needs: Rows = "all") -> Tensor:
        """a_w − ã_w of a writer now, at some of the rows that it is run at."""
        name = self.names[place]
        has = self.rows[name]
        write = self.narrow(self.writes[name], has, needs)
        ablated = self.narrow(self._ablated[name], "all", needs)
        return self.units.in_stream(node_named(name), write - ablated)

    def base(self, reader: Node, needs: Rows) -> Tensor:
        """A reader's input with no edge kept."""
        key = f"a{reader.block}" if reader.kind == "head" else reader.name
        return self.narrow(self._bases[key], "all", needs)

    def keeps_all(self, reader: Node) -> bool:
        """Whether a reader reads every writer before it, and all of these are as at the start."""
        kept = self.kept[reader.name]
        as_at_start = not any(self.names[place] in self.opened for place in kept)
        return len(kept) == self.before(reader) and as_at_start

    def before(self, reader: Node) -> int:
        """The number of writers before a reader."""
        return self._before[reader.unit]

    def read(self, reader: Node, needs: Rows) -> StreamRows:
        """A reader's current input, summed afresh over the writers that it keeps."""
        if self.keeps_all(reader) and (reader.kind == "logits" or reader.unit in self.writes):
            stream = self.prefixes()[self.before(reader)]
            return self.base(reader, needs) + self.narrow(stream, "all", needs)
        total = self.base(reader, needs).double()
        for place in self.kept[reader.name]:
            total = total + self.difference(place, needs)
        embedded = self.embedded(needs)
        return total.to(embedded.dtype).expand_as(embedded)

    def read_anew(self, reader: Node, needs: Rows, trial: Trial) -> StreamRows:
        """A reader's input in a trial, summed afresh over the writers that it keeps."""
        moments, writes = trial.moments, trial.writes
        shape = (moments, *self.embedded(needs).shape)
        total = self.base(reader, needs).double().expand(shape).clone()
        for place in self.kept[reader.name]:
            if place not in writes:
                total += self.difference(place, needs)
                continue
            name = self.names[place]
            write = self.narrow(writes[place], self.rows[name], needs)
            ablated = self.narrow(self._ablated[name], "all", needs)
            moved = (write.unflatten(0, (moments, -1)) - ablated).flatten(0, 1)
            total += self.units.in_stream(node_named(name), moved).view(shape)
        return total.flatten(0, 1).to(self.vit.positions.dtype)

    def embedded(self, needs: Rows) -> StreamRows:
        """The write of `embed`, at some rows: the shape and dtype of a stream."""
        return self.narrow(self.writes["embed"], "all", needs)

    def prefixes(self) -> Float[Tensor, "_writer image token width"]:
        """Σ of a_v − ã_v over the writers v before each writer, and over all of them.

        Made when first asked for, which must be before any unit is opened that it is wanted for.
        """
        if self._prefixes is None:
            whole = [n not in self.opened and self.rows[n] == "all" for n in self.names]
            self._prefixes = self.sums(range([*whole, False].index(False)), "all")
        return self._prefixes

    def sums(self, places: Iterable[int], needs: Rows) -> Float[Tensor, "_place image _row width"]:
        """Σ of a_v − ã_v over the first 0, 1, 2, … of some writers."""
        places = list(places)
        embedded = self.embedded(needs)
        total = torch.zeros_like(embedded, dtype=torch.float64)
        sums = embedded.new_zeros(len(places) + 1, *embedded.shape)
        for index, place in enumerate(places):
            total += self.difference(place, needs)
            sums[index + 1] = total
        return sums

    def products(
        self, writers: int, weight: Float[Tensor, "_out width"]
    ) -> Float[Tensor, "_writer image token _out"]:
        """The first `prefixes`, times some weights; heads are multiplied in their own width."""
        embedded, folded = self.writes["embed"], dict[int | None, Tensor]()
        table = embedded.new_zeros(writers + 1, *embedded.shape[:2], len(weight))
        for place, name in enumerate(self.names[:writers]):
            node = node_named(name)
            if node.head is None:
                added = self.difference(place) @ weight.T
            else:
                if node.block not in folded:
                    folded[node.block] = self.units.heads_of(node.block_index).out @ weight.T
                added = (self.writes[name] - self._ablated[name]) @ folded[node.block][node.head]
            torch.add(table[place], added, out=table[place + 1])
        return table

    def lengths(self, reader: Node) -> Float[Tensor, "_writer image token 1"]:
        """The squared lengths of what a reader reads of the first 0, 1, 2, … writers alone."""
        key = f"a{reader.block}" if reader.kind == "head" else reader.name
        if key not in self._lengths:
            base = self.base(reader, "all")
            streams = self.prefixes()[: self.before(reader) + 1]
            self._lengths = {key: torch.stack([squares(stream + base) for stream in streams])}
        return self._lengths[key]
