"""The one walk over a ViT: its sub-layers in forward order, each with its LayerNorm and constants.

`sublayers(vit)` gives two per block, attention before MLP; what a block lacks is an `EmptyLayer`.
Whoever runs a ViT step by step (writer outputs, ablated runs, gradients, the incremental engine,
the compiler) takes its steps from here. `ViT.forward` itself stays plain, in `vit.py`.

To add a kind of ViT: rotary positions change `AttentionLayer.mix`, `AttentionLayer.project` and
`Attention.mix`; a gated MLP changes `MlpLayer.neurons` and `MLP.neurons`; an RMSNorm changes the
norms in `vit.py` and `folded_projection`. Then the library's reader in `pretrained/libraries`.
"""

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.models.vit import MLP, Attention, Block, ViT


@dataclass(frozen=True)
class EmptyLayer:
    """A place without units: what an absent attention or MLP still adds to the stream.

    Attributes:
        block: its block.
        name: `a{l}` for attention, `m{l}` for an MLP.
        bias: b_O, the output bias of an attention, even of an absent one; [width].
        constant: what removed units write, [token width].
    """

    block: int
    name: str
    bias: Tensor | None
    constant: Tensor | None

    @property
    def units(self) -> tuple[str, ...]:
        """The names of its units, in forward order: none."""
        return ()

    @property
    def constants(self) -> Tensor | float:
        """The sum of bias and constant, which belong to no writer; [#token width]."""
        parts = [part for part in (self.bias, self.constant) if part is not None]
        return sum(parts[1:], start=parts[0]) if parts else 0.0

    def after(self, stream: Float[Tensor, "image token width"]) -> Tensor:
        """The stream after this place."""
        for part in (self.bias, self.constant):
            stream = stream if part is None else stream + part
        return stream


@dataclass(frozen=True)
class AttentionLayer(EmptyLayer):
    """The heads of a block and the LayerNorm before them."""

    norm: nn.LayerNorm
    attention: Attention

    @property
    def units(self) -> tuple[str, ...]:
        """The names of its heads."""
        return tuple(f"{self.name}.h{head}" for head in range(self.attention.heads))

    def mix(self, stream: Float[Tensor, "image token width"]) -> Tensor:
        """Each head's z, [image head token head_width], if all heads read the same stream."""
        return self.attention.mix(self.norm(stream))

    def after_writes(
        self,
        stream: Float[Tensor, "image token width"],
        z: Float[Tensor, "image head token head_width"],
    ) -> Float[Tensor, "image token width"]:
        """The stream after the heads have written z @ W_O."""
        stream = stream + self.attention.write(z, self.bias)
        return stream if self.constant is None else stream + self.constant

    def output_weight(self, head: int) -> Float[Tensor, "head_width width"]:
        """W_O of one head; a view."""
        return self.attention.output_weight()[head]

    def folded(self) -> tuple[Tensor, Tensor]:
        """The projection of queries, keys and values after x̂; see `folded_projection`."""
        return folded_projection(self.norm, self.attention.qkv)


@dataclass(frozen=True)
class MlpLayer(EmptyLayer):
    """The MLP of a block and the LayerNorm before it."""

    norm: nn.LayerNorm
    mlp: MLP

    @property
    def units(self) -> tuple[str, ...]:
        """Its own name."""
        return (self.name,)

    def neurons(self, stream: Float[Tensor, "image token width"]) -> Tensor:
        """The neurons after the activation, [image token neuron]."""
        return self.mlp.neurons(self.norm(stream))

    def after_writes(
        self, stream: Float[Tensor, "image token width"], write: Float[Tensor, "image token width"]
    ) -> Float[Tensor, "image token width"]:
        """The stream after the MLP has written."""
        return self.after(stream + write)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The first linear layer after x̂; see `folded_projection`."""
        return folded_projection(self.norm, self.mlp.fc1)


SubLayer: TypeAlias = EmptyLayer | AttentionLayer | MlpLayer


def sublayers(vit: ViT) -> tuple[SubLayer, ...]:
    """Attention and MLP of every block, in forward order: 2·block and 2·block + 1."""
    return tuple(
        layer
        for index, block in enumerate(vit.blocks)
        if isinstance(block, Block)
        for layer in (_attention_place(block, index), _mlp_place(block, index))
    )


def attention_layer(vit: ViT, block: int) -> AttentionLayer:
    """The attention of a block that has one."""
    layer = sublayers_of(vit, block)[0]
    assert isinstance(layer, AttentionLayer)
    return layer


def mlp_layer(vit: ViT, block: int) -> MlpLayer:
    """The MLP of a block that has one."""
    layer = sublayers_of(vit, block)[1]
    assert isinstance(layer, MlpLayer)
    return layer


def sublayers_of(vit: ViT, block: int) -> tuple[SubLayer, SubLayer]:
    """The attention and the MLP of a block, or their empty places."""
    module = vit.blocks[block]
    assert isinstance(module, Block)
    return _attention_place(module, block), _mlp_place(module, block)


def _attention_place(block: Block, index: int) -> SubLayer:
    place = index, f"a{index}", block.output_bias, block.attention_constant
    if block.attention is None or block.ln1 is None:
        return EmptyLayer(*place)
    return AttentionLayer(*place, block.ln1, block.attention)


def _mlp_place(block: Block, index: int) -> SubLayer:
    place = index, f"m{index}", None, block.mlp_constant
    if block.mlp is None or block.ln2 is None:
        return EmptyLayer(*place)
    return MlpLayer(*place, block.ln2, block.mlp)


def folded_projection(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """The linear layer on x̂ that equals `linear` on LayerNorm(x).

    LayerNorm(x) = x̂ ∘ γ + β with x̂ = (x − mean) / σ, so W LayerNorm(x) + b = (W ∘ γ) x̂ + (b + W β).

    Returns:
        W ∘ γ [out width] and b + W β [out].
    """
    bias = linear.weight @ norm.bias
    if linear.bias is not None:
        bias = linear.bias + bias
    return linear.weight * norm.weight, bias


def constants_before(vit: ViT, place: int) -> Tensor:
    """The constants in the stream before a sub-layer, which belong to no writer; [#token width].

    Args:
        vit: the model.
        place: 2·block for attention, 2·block + 1 for an MLP, 2·depth for the read-out.
    """
    total = vit.positions.new_zeros(1, 1)
    for layer in sublayers(vit)[:place]:
        total = total + layer.constants
    return total
