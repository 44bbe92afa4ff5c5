"""The heads and MLPs of a model, run on reads of their own."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from circuitvit.discover.acdc.engine.folded_weights import (
    Heads,
    Measured,
    Neurons,
    Projected,
    centred,
    squares,
)
from circuitvit.graph.edge_graph import Node, node_named
from circuitvit.intervene.needed_tokens import Rows, narrowed
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, sublayers
from circuitvit.models.vit import PARTS, ViT


class UnitForward:
    """The heads and MLPs of a model, to be run on reads of their own.

    Args:
        vit: the model.
        folded: whether LayerNorms are folded and streams come without their mean.
    """

    def __init__(self, vit: ViT, *, folded: bool) -> None:
        self.folded = folded
        self.pools_from = vit.config.pools_from
        self.layers = sublayers(vit)
        self._heads, self._neurons = dict[int, Heads](), dict[int, Neurons]()
        for layer in self.layers:
            if isinstance(layer, AttentionLayer):
                self._heads[layer.block] = Heads.of(layer, folded=folded)
            elif isinstance(layer, MlpLayer):
                self._neurons[layer.block] = Neurons.of(layer, folded=folded)

    def plain(self, x: Tensor) -> Tensor:
        """As a stream is held: without its mean, if LayerNorms are folded."""
        return centred(x) if self.folded else x

    def measured(self, x: Tensor) -> Measured:
        """What a reader reads, with its length."""
        return Measured(x, squares(x if self.folded else centred(x)))

    def run_heads(
        self, block: int, heads: list[int], rows: Rows, parts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Z of some heads, and what it is made of.

        Args:
            block: theirs.
            heads: which.
            rows: of z that are needed.
            parts: `q`, `k`, `v` [head image token head_width]; if nothing but v changes, `pattern`
                in place of q and k.
        """
        made = dict(parts)
        if "pattern" not in made:
            made["pattern"] = (made["q"] @ made["k"].mT).softmax(dim=-1)
        pattern = made["pattern"]
        if rows == "mean":
            pattern = pattern[..., self.pools_from :, :].mean(dim=-2, keepdim=True)
        made["z"] = pattern @ made["v"]
        return made

    def run_mlp(self, block: int, rows: Rows, read: Measured | Projected) -> Tensor:
        """What an MLP writes, at the rows that are needed."""
        neurons = self.neurons_of(block)
        hidden = neurons.hidden(read)
        has = "all" if rows == "mean" else rows
        return neurons.write(narrowed(hidden, has, rows, self.pools_from))

    def run(
        self,
        nodes: list[Node],
        reads: Mapping[str, Measured | Projected],
        rows: Rows,
        moments: int = 1,
        made: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """What an MLP, or heads of a block with the same parts changed, make of their reads.

        Args:
            nodes: the MLP, or the heads.
            reads: by reader, what is read anew.
            rows: of what they write that are needed.
            moments: how many removals lie behind one another on the image axis.
            made: what was made before, by unit; needed where some parts of a head are as before.
        """
        block = nodes[0].block_index
        if nodes[0].kind == "mlp":
            value = self.run_mlp(block, rows, reads[nodes[0].name])
            return {nodes[0].name: {"value": value}}
        weights, parts = self.heads_of(block), dict[str, Tensor]()
        heads = [node.head for node in nodes if node.head is not None]
        new = [part for part in PARTS if f"{nodes[0].name}.{part}" in reads]
        for part in new:
            read = _together([reads[f"{node.name}.{part}"] for node in nodes])
            parts[part] = weights.project(part, heads, read)
        for part in ["pattern"] if new == ["v"] else [p for p in PARTS if p not in new]:
            old = [(made or {})[node.name][part] for node in nodes]
            parts[part] = _stacked([o if moments == 1 else o.repeat(moments, 1, 1) for o in old])
        fresh = self.run_heads(block, heads, rows, parts)
        names = [*new, "z"] if new == ["v"] else [*new, "pattern", "z"]
        return {
            node.name: {name: fresh[name][index] for name in names}
            for index, node in enumerate(nodes)
        }

    def heads_of(self, block: int) -> Heads:
        """The weights of the heads of a block that has some."""
        return self._heads[block]

    def neurons_of(self, block: int) -> Neurons:
        """The weights of the MLP of a block that has one."""
        return self._neurons[block]

    def in_stream(self, node: Node, write: Tensor) -> Tensor:
        """A write in the stream's width: of a head, z by its W_O."""
        if node.head is None:
            return write
        return self.heads_of(node.block_index).expand([node.head], write[None])[0]


@lru_cache(maxsize=4096)
def readers_of_unit(unit: Node) -> tuple[Node, ...]:
    """The readers of a unit: q, k and v of a head, else the unit itself."""
    if unit.kind != "head":
        return (unit,)
    return tuple(node_named(f"{unit.name}.{part}") for part in PARTS)


def _together(reads: Sequence[Measured | Projected]) -> Measured | Projected:
    """Those of several heads, with the heads in front; all of one kind."""
    lengths = _stacked([read.squares for read in reads])
    measured = [read.x for read in reads if isinstance(read, Measured)]
    if measured:
        return Measured(_stacked(measured), lengths)
    products = [read.products for read in reads if isinstance(read, Projected)]
    return Projected(_stacked(products), lengths)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tuple(tensors))
