"""The intermediate form of a circuit between the passes: kept edges, and what is constant.

A program is never altered; each pass returns a new one. All of it is in double precision, so that
rounding in folded weights is negligible.
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
from circuitvit.models.sublayers import (
    AttentionLayer,
    MlpLayer,
    attention_layer,
    constants_before,
    mlp_layer,
)
from circuitvit.models.vit import PARTS, ViT

ConstantTable = Float[Tensor, "_row width"]
"""A value that is the same for all images: one row a token, or one row for all tokens."""


@dataclass(frozen=True)
class Program:
    """A circuit on the way to a smaller model.

    Attributes:
        vit: the model, in double precision.
        ablated: ã of every writer.
        kept: the writers that a reader keeps, by reader that is still run (q, k and v apart).
        constants: the write of each constant unit.
        parts: constant queries, keys or values of a head, by reader.
        patterns: constant attention patterns [_row token], by head.
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

    def attention(self, node: Node) -> AttentionLayer:
        """The attention of a head."""
        return attention_layer(self.vit, node.block_index)

    def mlp(self, node: Node) -> MlpLayer:
        """The MLP of a node."""
        return mlp_layer(self.vit, node.block_index)

    def table(self, reader: str) -> ConstantTable:
        """The constant part of a reader's input.

        It is the sum of the model's constants, ã of every earlier writer that the reader doesn't
        keep, and the writes of the constant units that it keeps.
        """
        node = node_named(reader)
        total = constants_before(self.vit, self._place(node))
        kept, names = self.kept[reader], writers_of(self.vit.config)
        before = names[: writers_before(self.vit.config)[node.unit]]
        for place, name in enumerate(before):
            if name not in kept:
                total = total + self.ablated[place, 0]
            elif name in self.constants:
                total = total + self.constants[name]
        return total.expand(-1, self.vit.config.width)

    def _place(self, node: Node) -> int:
        """The number of a reader's sub-layer in forward order; the read-out comes last."""
        if node.block is None:
            return 2 * self.vit.config.depth
        return 2 * node.block + (node.kind == "mlp")

    def ablated_of(self, writer: str) -> ConstantTable:
        """ã of a writer."""
        value = self.ablated[places_of(self.vit.config)[writer], 0]
        return value.expand(-1, self.vit.config.width)
