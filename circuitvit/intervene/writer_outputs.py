"""What every writer writes in the untouched model, and what an ablated one writes instead.

Heads are held by their z (head width), which is a head's write before W_O: a ViT-B has 144 heads of
width 64 in a stream of width 768, so that is a twelfth of the memory. `values` expands them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.circuit import Ablation
from circuitvit.intervene.input_checks import check_ablation, check_finite
from circuitvit.models.vit import Block, ViT

IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Writes:
    """What every writer writes; axes of size 1 are to be broadcast.

    Attributes:
        embed: [image token width].
        z: for each block, what its heads write before W_O; None where there are no heads.
        mlp: for each block, what its MLP writes; None where there is none.
    """

    embed: Float[Tensor, "image token width"]
    z: tuple[Float[Tensor, "image _head token _head_width"] | None, ...]
    mlp: tuple[Float[Tensor, "image token width"] | None, ...]

    def values(self, vit: ViT) -> Float[Tensor, "writer image token width"]:
        """All of them in forward order, the heads by W_O."""
        values = [self.embed[None]]
        for block, z, mlp in zip(vit.blocks, self.z, self.mlp, strict=True):
            assert isinstance(block, Block)
            if z is not None:
                assert block.attention is not None
                weight = block.attention.output_weight()
                values.append(torch.einsum("ihtd,hdw->hitw", z, weight))
            if mlp is not None:
                values.append(mlp[None])
        return torch.cat(values)

    def _each(self) -> list[Tensor]:
        return [t for t in (self.embed, *self.z, *self.mlp) if t is not None]


def writes(
    vit: ViT,
    images: Float[Tensor, "image channel _height _width"],
    *,
    on_post: Callable[[int, Tensor], None] | None = None,
) -> tuple[Writes, Float[Tensor, "image class"]]:
    """What every writer writes in the untouched model, and the logits.

    Args:
        vit: the model.
        images: what it looks at.
        on_post: called with each MLP's block and its neurons' post-activations [image token
            neuron].
    """
    tell = on_post or (lambda _block, _post: None)
    stream = embed = vit.embed(images)
    zs: list[Tensor | None] = []
    mlps: list[Tensor | None] = []
    for index, block in enumerate(vit.blocks):
        assert isinstance(block, Block)
        z = mlp = None
        if block.attention is not None and block.ln1 is not None:
            z = block.attention.mix(block.ln1(stream))
            stream = stream + block.attention.write(z, block.output_bias)
        elif block.output_bias is not None:
            stream = stream + block.output_bias
        if block.attention_constant is not None:
            stream = stream + block.attention_constant
        if block.mlp is not None and block.ln2 is not None:
            post = block.mlp.neurons(block.ln2(stream))
            tell(index, post)
            mlp = block.mlp.fc2(post)
            stream = stream + mlp
        if block.mlp_constant is not None:
            stream = stream + block.mlp_constant
        zs.append(z)
        mlps.append(mlp)
    return Writes(embed, tuple(zs), tuple(mlps)), vit.read_out(stream)


def attention_constants(block: Block) -> Tensor | float:
    """What the block adds after its heads that belongs to no writer: b_O and the constant."""
    parts = [c for c in (block.output_bias, block.attention_constant) if c is not None]
    return sum(parts[1:], start=parts[0]) if parts else 0.0


def ablated_writes(
    vit: ViT,
    ablation: Ablation,
    *,
    corrupt: Float[Tensor, "image channel _height _width"] | None = None,
    reference: Tensor | None = None,
) -> Writes:
    """ã of every writer: its value on the corrupt images, zero, or its mean over the reference.

    Raises:
        CircuitError: the ablation is unknown, or the images that it needs are not given.
    """
    check_ablation(ablation, corrupt=corrupt, reference=reference)
    if ablation == "patch":
        assert corrupt is not None
        return writes(vit, corrupt)[0]
    if ablation == "zero":
        return _zeros(vit)
    assert reference is not None
    vit.check_images(reference, name="reference images")
    check_finite(reference, name="reference images")
    return _means(vit, reference.to(vit.positions.device))


def _zeros(vit: ViT) -> Writes:
    config, zeros = vit.config, vit.positions.new_zeros
    stream = zeros(1, 1, config.width)
    shapes = zip(config.heads, config.head_width, strict=True)
    return Writes(
        stream,
        tuple(zeros(1, heads, 1, width) if heads else None for heads, width in shapes),
        tuple(stream if neurons else None for neurons in config.mlp_width),
    )


def _means(vit: ViT, reference: Float[Tensor, "image channel _height _width"]) -> Writes:
    totals: list[Tensor] = []
    some = _zeros(vit)
    for chunk in reference.split(IMAGES_AT_ONCE):
        some = writes(vit, chunk)[0]
        sums = [value.sum(dim=0, keepdim=True, dtype=torch.float64) for value in some._each()]
        totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
    means = iter([(total / len(reference)).to(reference.dtype) for total in totals])
    return Writes(
        next(means),
        tuple(None if z is None else next(means) for z in some.z),
        tuple(None if mlp is None else next(means) for mlp in some.mlp),
    )


def ablated_values(
    vit: ViT,
    ablation: Ablation,
    *,
    corrupt: Float[Tensor, "image channel _height _width"] | None = None,
    reference: Tensor | None = None,
) -> Float[Tensor, " writer #image #token #width"]:
    """ã of every writer in forward order, as `ablated_writes` has it.

    Raises:
        CircuitError: the ablation is unknown, or the images that it needs are not given.
    """
    return ablated_writes(vit, ablation, corrupt=corrupt, reference=reference).values(vit)


def neuron_means(
    vit: ViT, reference: Float[Tensor, "image channel _height _width"]
) -> dict[int, Float[Tensor, "token _neuron"]]:
    """The mean post-activation of every neuron over the reference, by block."""
    totals: dict[int, Tensor] = {}

    def add(block: int, post: Tensor) -> None:
        totals[block] = totals.get(block, 0) + post.sum(dim=0, dtype=torch.float64)

    for chunk in reference.to(vit.positions.device).split(IMAGES_AT_ONCE):
        writes(vit, chunk, on_post=add)
    dtype = vit.positions.dtype
    return {block: (total / len(reference)).to(dtype) for block, total in totals.items()}
