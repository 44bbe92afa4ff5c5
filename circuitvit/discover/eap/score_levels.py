"""From sums over edges or neurons to named values at each level."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from circuitvit.config import ViTConfig
from circuitvit.discover.eap.edge_products import EdgeSums
from circuitvit.graph.edge_graph import (
    Qkv,
    node_named,
    readers_of,
    units_of,
    writers_before,
    writers_of,
)
from circuitvit.models.vit import PARTS


def edge_values(config: ViTConfig, sums: EdgeSums, span: int, qkv: Qkv) -> dict[str, float]:
    """The value of every edge in one run of tokens, in the pinned order."""
    lists = {name: values[span].tolist() for name, values in sums.items()}
    writers, before = writers_of(config), writers_before(config)
    named = {}
    for reader in readers_of(config, qkv):
        node = node_named(reader)
        if node.kind == "head":
            parts = PARTS if node.part is None else (node.part,)
            rows = [lists[f"a{node.block}"][PARTS.index(part)][node.head] for part in parts]
            values = [sum(several) for several in zip(*rows, strict=True)]
        else:
            values = lists[reader]
        for place in reversed(range(before[node.unit])):
            named[f"{writers[place]}->{reader}"] = values[place]
    return named


def summed_at(
    config: ViTConfig, level: str, qkv: Qkv, by_edge: Mapping[str, float]
) -> Mapping[str, float]:
    """The values of nodes or blocks: those of all their out-edges that leave them, added up."""
    if level == "edge":
        return by_edge
    group = {name: name for name in ("embed", *units_of(config), "logits")}
    if level == "block":
        group |= {name: f"block{node_named(name).block}" for name in units_of(config)}
        total = {f"block{block}": 0.0 for block in range(config.depth)}
    else:
        total = dict.fromkeys(units_of(config), 0.0)
    group |= {reader: group[node_named(reader).unit] for reader in readers_of(config, qkv)}
    for name, value in by_edge.items():
        writer, reader = name.split("->")
        if writer != "embed" and group[writer] != group[reader]:
            total[group[writer]] += value
    return total


def neuron_values(sums: Mapping[str, Float[Tensor, " neuron"]]) -> dict[str, float]:
    """The value of every neuron, named `m{l}.n{k}`."""
    return {
        f"{name}.n{neuron}": value
        for name, values in sums.items()
        for neuron, value in enumerate(values.tolist())
    }
