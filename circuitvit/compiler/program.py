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
from circuitvit.models.sublayers import (
    AttentionLayer,
    MlpLayer,
    attention_layer,
    constants_before,
    mlp_layer,
)
from circuitvit.models.vit import PARTS, ViT

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

    def attention(self, node: Node) -> AttentionLayer:
        """The attention of a head."""
        return attention_layer(self.vit, node.block_index)

    def mlp(self, node: Node) -> MlpLayer:
        """The MLP of a node."""
        return mlp_layer(self.vit, node.block_index)

    def table(self, reader: str) -> ConstantTable:
        """What a reader reads beside its live writers.

        That is the model's constants, ã of every writer before it that it does not keep, and what
        the constant units that it keeps write.
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
        """Which sub-layer a reader belongs to, counted from the first."""
        if node.block is None:
            return 2 * self.vit.config.depth
        return 2 * node.block + (node.kind == "mlp")

    def ablated_of(self, writer: str) -> ConstantTable:
        """ã of a writer."""
        value = self.ablated[places_of(self.vit.config)[writer], 0]
        return value.expand(-1, self.vit.config.width)
