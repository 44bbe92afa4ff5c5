"""Pass: adds the mean writes of removed units as constants, under `mean`.

A removed unit's ã is added to the output constant of the last kept sub-layer at or before it. If
there is none, it is added to the positions, or where a LayerNorm follows these, to the first
block's constant. The b_O and the constants of an emptied sub-layer move along, so that it costs
nothing.
"""

from collections.abc import Iterable
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.edge_graph import node_named, writers_of
from circuitvit.intervene.surgery import rebuilt
from circuitvit.models.vit import ViT


def fold_means(
    vit: ViT,
    compiled: ViT,
    units: Iterable[str],
    ablated: Float[Tensor, " writer #image #token #width"],
) -> ViT:
    """The compiled model with the removed units' mean values folded in.

    Args:
        vit: the whole model.
        compiled: the kept units of it.
        units: their names.
        ablated: the mean of every writer, [writer 1 token width].
    """
    kept, config = set(units), compiled.config
    removed: dict[tuple[str, int], Tensor | float] = {}
    for place, name in enumerate(writers_of(vit.config)):
        node = node_named(name)
        if node.block is not None and name not in kept:
            where = ("mlp" if node.head is None else "attention", node.block)
            removed[where] = removed.get(where, 0.0) + ablated[place, 0]
    weights = compiled.state_dict()
    holder = "blocks.0.attention_constant" if config.embed_norm else "positions"
    for block in range(config.depth):
        for kind, left in (("attention", config.heads), ("mlp", config.mlp_width)):
            own, bias = f"blocks.{block}.{kind}_constant", f"blocks.{block}.output_bias"
            parts = [removed[kind, block]] if (kind, block) in removed else []
            if left[block]:
                holder = own
            else:
                emptied = [own, bias] if kind == "attention" else [own]
                parts += [weights.pop(name) for name in emptied if name in weights]
            if parts:
                weights[holder] = weights.get(holder, 0.0) + sum(parts)
    zeros = compiled.positions.new_zeros(compiled.positions.shape)
    weights = {
        name: value + zeros if "constant" in name else value for name, value in weights.items()
    }

    def held(name: str) -> tuple[bool, ...]:
        return tuple(f"blocks.{block}.{name}" in weights for block in range(config.depth))

    shape = replace(
        config,
        output_bias=held("output_bias"),
        attention_constant=held("attention_constant"),
        mlp_constant=held("mlp_constant"),
    )
    return rebuilt(compiled, shape, weights)
