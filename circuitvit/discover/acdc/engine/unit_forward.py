"""The heads and MLPs of a model, run on reads of their own.

A LayerNorm subtracts the mean over the width, divides by σ, and scales: LN(x) = x̂ ∘ γ + β. γ and β
are folded into the projections that follow it, W x̂ ∘ γ + W β + b; the mean is removed once, when
something is written to the stream; what is left is one factor 1/σ for each token. Unfolded, the
same functions use the LayerNorm as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.graph.edge_graph import Node, node_named
from circuitvit.intervene.run_plan import Rows, narrowed
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, sublayers
from circuitvit.models.vit import PARTS, Attention, ViT, activate


def centred(x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
    """Without its mean over the width, which no LayerNorm sees."""
    return x - x.mean(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Measured:
    """A reader's input and its squared length.

    Attributes:
        x: [image token width], or with the heads in front.
        squares: its squared length without its mean, [image token 1], or with the heads in front.
    """

    x: Tensor
    squares: Tensor


@dataclass(frozen=True)
class Projected:
    """A reader's input times its folded weights, not yet divided by σ.

    Attributes:
        products: [image token out], or with the heads in front.
        squares: the squared length of what it reads, [image token 1], or with the heads in front.
    """

    products: Tensor
    squares: Tensor


@dataclass(frozen=True)
class Heads:
    """The heads of a block.

    Attributes:
        weight: of the queries, keys and values.
        bias: of the same.
        out: W_O of each head.
        norm: the LayerNorm before them; its scale and shift are in `weight` and `bias` if `folded`.
        attention: the block's own, for the LayerNorms of queries and keys.
        folded: whether streams come without their mean.
    """

    weight: Float[Tensor, "part head head_width width"]
    bias: Float[Tensor, "part head head_width"]
    out: Float[Tensor, "head head_width width"]
    norm: nn.LayerNorm
    attention: Attention
    folded: bool

    @classmethod
    def of(cls, layer: AttentionLayer, *, folded: bool) -> "Heads":
        """Those of a block; copies, so the model stays as it is."""
        attention, norm = layer.attention, layer.norm
        parts = [attention.projection(part) for part in PARTS]
        weight = torch.stack([weight for weight, _ in parts])
        bias = torch.stack([w.new_zeros(w.shape[:2]) if b is None else b for w, b in parts])
        out = attention.output_weight()
        if folded:
            folded_weight, folded_bias = layer.folded()
            weight, bias = folded_weight.view_as(weight), folded_bias.view_as(bias)
            out = centred(out)
        if attention.q_norm is None:
            scale = torch.ones_like(weight[:, :1, :1, :1])
            scale[0] = weight.shape[2] ** -0.5
            weight, bias = weight * scale, bias * scale[..., 0]
        return cls(weight, bias, out.contiguous(), norm, attention, folded)

    def project(
        self, part: str, heads: list[int], reads: "Measured | Projected"
    ) -> Float[Tensor, "head image token head_width"]:
        """The queries, keys or values of some heads; queries come divided by √head_width.

        Args:
            part: `q`, `k` or `v`.
            heads: which.
            reads: what they read, with the heads in front, or its products.
        """
        index = PARTS.index(part)
        weight, bias = self._of(self.weight[index], heads), self._of(self.bias[index], heads)
        if isinstance(reads, Projected) or self.folded:
            if isinstance(reads, Measured):
                reads = Projected(_times(reads.x, weight.mT), reads.squares)
            factor = inverse_deviation(reads.squares, self.norm)
            projected = torch.addcmul(bias[:, None, None], reads.products, factor)
        else:
            projected = _times(self.norm(reads.x), weight.mT) + bias[:, None, None]
        if part != "q" or self.attention.q_norm is None:
            return self.attention.normalize(part, projected)
        return self.attention.q_norm(projected) * projected.shape[-1] ** -0.5

    def of_part(self, part: str) -> Float[Tensor, "head head_width width"]:
        """The weights of the queries, keys or values."""
        return self.weight[PARTS.index(part)]

    def expand(
        self, heads: list[int], z: Float[Tensor, "head image token head_width"]
    ) -> Float[Tensor, "head image token width"]:
        """Z in the stream: z @ W_O of each head."""
        return _times(z, self._of(self.out, heads))

    def _of(self, per_head: Tensor, heads: list[int]) -> Tensor:
        if len(heads) == 1:
            return per_head[heads[0] : heads[0] + 1]
        return per_head[heads]


@dataclass(frozen=True)
class Neurons:
    """The MLP of a block; the attributes are as in `Heads`."""

    first: Float[Tensor, "neuron width"]
    first_bias: Float[Tensor, " neuron"]
    second: Float[Tensor, "width neuron"]
    second_bias: Float[Tensor, " width"]
    norm: nn.LayerNorm
    activation: str
    folded: bool

    @classmethod
    def of(cls, layer: MlpLayer, *, folded: bool) -> "Neurons":
        """Those of a block; copies, so the model stays as it is."""
        mlp, norm = layer.mlp, layer.norm
        first, first_bias = mlp.fc1.weight, mlp.fc1.bias
        second, second_bias = mlp.fc2.weight, mlp.fc2.bias
        if folded:
            first, first_bias = layer.folded()
            second, second_bias = centred(second.T).T.contiguous(), centred(second_bias)
        return cls(first, first_bias, second, second_bias, norm, mlp.activation, folded)

    def hidden(self, reads: "Measured | Projected") -> Float[Tensor, "image token neuron"]:
        """The neurons, after the activation.

        Args:
            reads: what the MLP reads, or its products.
        """
        if isinstance(reads, Projected):
            factor = inverse_deviation(reads.squares, self.norm)
            hidden = torch.addcmul(self.first_bias, reads.products, factor)
        elif self.folded:
            normalized = reads.x * inverse_deviation(reads.squares, self.norm)
            hidden = F.linear(normalized, self.first, self.first_bias)
        else:
            hidden = F.linear(self.norm(reads.x), self.first, self.first_bias)
        return activate(self.activation, hidden)

    def write(
        self, hidden: Float[Tensor, "image token neuron"]
    ) -> Float[Tensor, "image token width"]:
        """What the MLP writes."""
        return F.linear(hidden, self.second, self.second_bias)


def squares(x: Float[Tensor, "*any token width"]) -> Float[Tensor, "*any token 1"]:
    """The squared length of a stream, token by token."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()


def inverse_deviation(
    squared: Float[Tensor, "*any token 1"], norm: nn.LayerNorm
) -> Float[Tensor, "*any token 1"]:
    """1/σ of a LayerNorm, from the squared length of a stream without its mean."""
    eps = squared.new_tensor(norm.eps)
    return torch.add(eps, squared, alpha=1 / norm.normalized_shape[0]).rsqrt_()


def _times(
    x: Float[Tensor, "head image token _into"], weight: Float[Tensor, "head _into _out_of"]
) -> Float[Tensor, "head image token _out_of"]:
    """One product for all heads."""
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


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
        """A reader's input with its squared length."""
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
        """The write of an MLP, at the rows that are needed."""
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
        """Run an MLP, or heads of a block with the same changed parts, on new inputs.

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
    """Inputs of several heads, with the heads in front; all of one kind."""
    lengths = _stacked([read.squares for read in reads])
    measured = [read.x for read in reads if isinstance(read, Measured)]
    if measured:
        return Measured(_stacked(measured), lengths)
    products = [read.products for read in reads if isinstance(read, Projected)]
    return Projected(_stacked(products), lengths)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tuple(tensors))
