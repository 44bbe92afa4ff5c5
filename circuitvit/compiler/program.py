"""What is left of a circuit between the passes: who reads whom, and what is constant.

A program is never altered; each pass gives a new one. All is in double precision, whatever the
model's own is, so that what is folded is as exact as it can be.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import (
    Node,
    node_named,
    places_of,
    readers_of,
    writers_before,
    writers_of,
)
from circuitvit.intervene.ablated_run import attention_constants
from circuitvit.models.vit import PARTS, Block, ViT

ConstantTable = Float[Tensor, "_row width"]
"""Something that is the same for all images: one row a token, or one row for all tokens."""


@dataclass(frozen=True)
class Program:
    """A circuit on the way to a smaller model.

    Attributes:
        vit: the model, in double precision.
        ablated: ã of every writer.
        kept: by reader (q, k and v apart) that is still run, the writers that it keeps.
        constants: by constant unit, what it writes.
        parts: by reader, the queries, keys or values of a head that are constant.
        patterns: by head, its pattern where that is constant, [_row token].
    """

    vit: ViT
    ablated: Float[Tensor, " writer #image #token #width"]
    kept: Mapping[str, frozenset[str]]
    constants: Mapping[str, ConstantTable] = field(default_factory=dict)
    parts: Mapping[str, Float[Tensor, "_row head_width"]] = field(default_factory=dict)
    patterns: Mapping[str, Float[Tensor, "_row token"]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, vit: ViT, circuit: Circuit, ablated: Float[Tensor, " writer #image #token #width"]
    ) -> "Program":
        """The program that runs every node of a model, each with the circuit's edges."""
        kept: dict[str, set[str]] = {name: set() for name in readers_of(vit.config)}
        for edge in circuit.edges:
            writer, reader = edge.split("->")
            node = node_named(reader)
            joint = node.kind == "head" and node.part is None
            for name in [f"{reader}.{part}" for part in PARTS] if joint else [reader]:
                kept[name].add(writer)
        frozen = {name: frozenset(writers) for name, writers in kept.items()}
        return cls(copy.deepcopy(vit).double(), ablated.double(), frozen)

    def live(self, reader: str) -> tuple[str, ...]:
        """The writers that a reader keeps and that depend on the image, in forward order."""
        places = places_of(self.vit.config)
        return tuple(
            sorted(
                (w for w in self.kept[reader] if w not in self.constants), key=places.__getitem__
            )
        )

    def runs(self, unit: str) -> bool:
        """Whether a head or an MLP has to be run."""
        first = unit if node_named(unit).kind == "mlp" else f"{unit}.v"
        return first in self.kept and unit not in self.constants

    def block(self, node: Node) -> Block:
        """The block of a node."""
        assert node.block is not None
        block = self.vit.blocks[node.block]
        assert isinstance(block, Block)
        return block

    def table(self, reader: str) -> ConstantTable:
        """What a reader reads beside its live writers.

        That is the model's constants, ã of every writer before it that it does not keep, and what
        the constant units that it keeps write.
        """
        node = node_named(reader)
        total = self._stream_constants(node)
        kept, names = self.kept[reader], writers_of(self.vit.config)
        before = names[: writers_before(self.vit.config)[node.unit]]
        for place, name in enumerate(before):
            if name not in kept:
                total = total + self.ablated[place, 0]
            elif name in self.constants:
                total = total + self.constants[name]
        return total.expand(-1, self.vit.config.width)

    def _stream_constants(self, node: Node) -> ConstantTable:
        """What is in the stream at a node but belongs to no writer: b_O and constants."""
        total = self.vit.positions.new_zeros(1, 1)
        for index, block in enumerate(self.vit.blocks):
            assert isinstance(block, Block)
            if node.block == index and node.kind == "head":
                return total
            total = total + attention_constants(block)
            if node.block == index:
                return total
            total = total + (0.0 if block.mlp_constant is None else block.mlp_constant)
        return total

    def ablated_of(self, writer: str) -> ConstantTable:
        """ã of a writer."""
        value = self.ablated[places_of(self.vit.config)[writer], 0]
        return value.expand(-1, self.vit.config.width)
