"""The writes of all writers: in the untouched model, and ablated.

Heads are held by their z (head width), which is a head's write before W_O: a ViT-B has 144 heads of
width 64 in a stream of width 768, so that is a twelfth of the memory. `values` expands them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.circuit import Ablation
from circuitvit.intervene.batching import IMAGES_AT_ONCE
from circuitvit.intervene.input_checks import check_ablation, check_finite
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, sublayers
from circuitvit.models.vit import ViT


@dataclass(frozen=True)
class Writes:
    """The writes of all writers; axes of size 1 are broadcast.

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
        for layer in sublayers(vit):
            if isinstance(layer, AttentionLayer):
                weight = layer.attention.output_weight()
                values.append(torch.einsum("ihtd,hdw->hitw", self.z_of(layer.block), weight))
            elif isinstance(layer, MlpLayer):
                values.append(self.mlp_of(layer.block)[None])
        return torch.cat(values)

    def z_of(self, block: int) -> Float[Tensor, "image _head token _head_width"]:
        """What the heads of a block that has some write before W_O."""
        return _present(self.z[block])

    def mlp_of(self, block: int) -> Float[Tensor, "image token width"]:
        """What the MLP of a block that has one writes."""
        return _present(self.mlp[block])

    def _each(self) -> list[Tensor]:
        return [t for t in (self.embed, *self.z, *self.mlp) if t is not None]


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


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
    zs: list[Tensor | None] = [None] * vit.config.depth
    mlps: list[Tensor | None] = [None] * vit.config.depth
    for layer in sublayers(vit):
        if isinstance(layer, AttentionLayer):
            zs[layer.block] = z = layer.mix(stream)
            stream = layer.after_writes(stream, z)
        elif isinstance(layer, MlpLayer):
            post = layer.neurons(stream)
            tell(layer.block, post)
            mlps[layer.block] = write = layer.mlp.fc2(post)
            stream = layer.after_writes(stream, write)
        else:
            stream = layer.after(stream)
    return Writes(embed, tuple(zs), tuple(mlps)), vit.read_out(stream)


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
