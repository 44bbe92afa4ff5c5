"""A circuit's run that is kept up to date while edges are removed.

Everything upstream of the reader being tried is untouched, so its new input is the old one minus a
difference; of what follows only the reader's own node and its surviving descendants change. Each
trial equals a whole ablated run (`circuitvit.ablation.run_embedded`) up to rounding: the sum of
the reader being tried is held in float64, and what a removal changed is summed afresh, so that
differences don't drift.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.ablation import (
    attention_constants,
    head_writes,
    mlp_value,
    project,
    writer_values,
)
from circuitvit.edge_graph import Node, node_named, places_of, units_of, writers_before
from circuitvit.vit import PARTS, Block, ViT

Stream = Float[Tensor, "image token width"]


@dataclass(frozen=True)
class Trial:
    """What one removal would change.

    Attributes:
        logits: of the circuit without the edge.
        values: by writer's index, the new value of each node that changes.
        reads: by reader (always split), its new copy of the stream.
        projected: by reader of a head, its new queries, keys or values.
    """

    logits: Float[Tensor, "image class"]
    values: dict[int, Stream] = field(default_factory=dict)
    reads: dict[str, Stream] = field(default_factory=dict)
    projected: dict[str, Tensor] = field(default_factory=dict)


class IncrementalRun:
    """A run that starts with all edges kept; `try_read` asks what a change does, `commit` does it.

    Args:
        vit: the model.
        clean: the clean images.
        ablated: ã of every writer.
    """

    def __init__(
        self,
        vit: ViT,
        clean: Float[Tensor, "image channel _height _width"],
        ablated: Float[Tensor, " writer #image #token #width"],
    ) -> None:
        run = writer_values(vit, clean)
        self.vit = vit
        self.logits = run.logits
        self._ablated = ablated
        self._values = list(run.values.unbind())
        self._places = places_of(vit.config)
        self._units = [node_named(name) for name in units_of(vit.config)]
        self._before = writers_before(vit.config)
        self._bases: dict[str, Tensor] = {}
        self._reads: dict[str, Stream] = {}
        self._projected: dict[str, Tensor] = {}
        self._kept: dict[str, set[int]] = {}
        self._start()

    def _start(self) -> None:
        """Fill in the untouched run; readers of a block share one copy of the stream.

        `base` is what a reader would read with no edge kept: constants and every ã so far.
        """
        stream, base = self._values[0], self._ablated[0].double()
        for index in range(self.vit.config.depth):
            block = self._block(index)
            heads = [u.name for u in self._units if u.block == index and u.kind == "head"]
            if heads and block.attention is not None and block.ln1 is not None:
                normalized = block.ln1(stream)[None]
                for part in PARTS:
                    made = project(block.attention, part, normalized)
                    for name, projected in zip(heads, made.unbind(), strict=True):
                        self._projected[f"{name}.{part}"] = projected
                        self._open(f"{name}.{part}", name, stream, base)
                stream = stream + sum(self._values[self._places[name]] for name in heads)
                base = base + sum(self._ablated[self._places[name]] for name in heads)
            added = attention_constants(block)
            stream, base = stream + added, base + added
            if block.mlp is not None:
                self._open(f"m{index}", f"m{index}", stream, base)
                stream = stream + self._values[self._places[f"m{index}"]]
                base = base + self._ablated[self._places[f"m{index}"]]
            added = 0.0 if block.mlp_constant is None else block.mlp_constant
            stream, base = stream + added, base + added
        self._open("logits", "logits", stream, base)

    def _open(self, reader: str, unit: str, stream: Stream, base: Tensor) -> None:
        self._reads[reader] = stream
        self._bases[reader] = base
        self._kept[reader] = set(range(self._before[unit]))

    def _block(self, index: int | None) -> Block:
        assert index is not None
        block = self.vit.blocks[index]
        assert isinstance(block, Block)
        return block

    def has_reader(self, unit: str) -> bool:
        """Whether any kept edge leaves the unit."""
        place = self._places[unit]
        return any(place in kept for kept in self._kept.values())

    def drop_all(self, readers: Iterable[str]) -> None:
        """Remove every edge into readers whose node nobody reads, so that nothing changes."""
        for reader in readers:
            self._kept[reader] = set()

    def exact_read(self, reader: str) -> Float[Tensor, "image token width"]:
        """What a reader reads now, summed in float64 over its kept writers."""
        total = torch.zeros_like(self._values[0], dtype=torch.float64) + self._bases[reader]
        for place in self._kept[reader]:
            total += self.difference(place)
        return total

    def difference(self, writer: int) -> Stream:
        """a_w − ã_w of a writer."""
        return self._values[writer] - self._ablated[writer]

    def try_read(self, reads: Mapping[str, Stream]) -> Trial:
        """What happens when readers of one unit read something else.

        Args:
            reads: by reader of the unit (`a0.h1.q`, …; `m0`; `logits`), its new input.
        """
        dtype = self._values[0].dtype
        reads = {reader: read.to(dtype) for reader, read in reads.items()}
        unit = node_named(node_named(next(iter(reads))).unit)
        if unit.kind == "logits":
            return Trial(self.vit.read_out(reads["logits"]), reads=dict(reads))
        trial = Trial(self.logits)
        changed: dict[int, Stream] = {}
        self._recompute(unit, reads, trial, changed)
        for later in self._units[self._places[unit.name] :]:
            self._recompute(later, self._changed_reads(later, changed), trial, changed)
        final = self._changed_reads(node_named("logits"), changed)
        if not final:
            return trial
        trial.reads.update(final)
        logits = self.vit.read_out(final["logits"])
        return Trial(logits, trial.values, trial.reads, trial.projected)

    def _changed_reads(self, unit: Node, changed: Mapping[int, Stream]) -> dict[str, Stream]:
        names = [f"{unit.name}.{part}" for part in PARTS] if unit.kind == "head" else [unit.name]
        reads = {}
        for reader in names:
            places = [place for place in changed if place in self._kept[reader]]
            if places:
                reads[reader] = self._reads[reader] + sum(changed[place] for place in places)
        return reads

    def _recompute(
        self, unit: Node, reads: Mapping[str, Stream], trial: Trial, changed: dict[int, Stream]
    ) -> None:
        """Run a unit on its new reads, if it has any, and note what it then writes."""
        if not reads:
            return
        block, place = self._block(unit.block), self._places[unit.name]
        if unit.kind == "mlp":
            value = mlp_value(block, reads[unit.name])
        else:
            value = self._head_value(unit, block, reads, trial)
        trial.reads.update(reads)
        trial.values[place] = value
        changed[place] = value - self._values[place]

    def _head_value(
        self, unit: Node, block: Block, reads: Mapping[str, Stream], trial: Trial
    ) -> Stream:
        attention, norm, head = block.attention, block.ln1, unit.head
        assert attention is not None
        assert norm is not None
        assert head is not None
        heads, qkv = slice(head, head + 1), []
        for part in PARTS:
            reader = f"{unit.name}.{part}"
            if reader in reads:
                normalized = norm(reads[reader])[None]
                trial.projected[reader] = project(attention, part, normalized, heads)[0]
            qkv.append(trial.projected.get(reader, self._projected[reader])[None])
        return head_writes(attention, *qkv, heads=heads)[0]

    def commit(self, trial: Trial, readers: Iterable[str], writer: int) -> None:
        """Remove the edges from a writer into readers of one unit, as tried."""
        readers = tuple(readers)
        for reader in readers:
            self._kept[reader].discard(writer)
        for place, value in trial.values.items():
            self._values[place] = value
        self._projected.update(trial.projected)
        self.logits = trial.logits
        for reader, read in trial.reads.items():
            mine = reader in readers
            self._reads[reader] = read if mine else self.exact_read(reader).to(read.dtype)

    def writers_into(self, reader: str) -> tuple[int, ...]:
        """The kept writers of a reader, latest first."""
        return tuple(sorted(self._kept[reader], reverse=True))
