"""Pass: fewer neurons in the kept MLPs; the write of the others becomes a constant.

A removed neuron has its ablated activation: 0 under `zero`, and under `mean` its mean over the
reference at each position. fc2 turns the means into a constant [token width] beside the MLP.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.discover import EdgeScores
from circuitvit.graph.edge_graph import node_named
from circuitvit.intervene.ablated_run import RemovedNeurons
from circuitvit.intervene.surgery import keep, rebuilt
from circuitvit.models.vit import ViT

Ratio = float | Mapping[int, float]
KeptNeurons = dict[int, list[int]]


def kept_neurons(
    scores: EdgeScores, units: Iterable[str], keep_ratio: Ratio, multiple: int
) -> KeptNeurons:
    """The kept neurons of each kept MLP that loses some, ascending.

    Neurons are ranked by |score|: those of all kept MLPs together with a single ratio, and each
    block's own with a mapping. Then each width is rounded up to a multiple, at least one multiple
    and at most the old width, by the best of the other neurons.
    """
    width = scores.config.mlp_width
    nodes = [node_named(name) for name in units]
    ranked: KeptNeurons = {
        node.block: [] for node in nodes if node.kind == "mlp" and node.block is not None
    }
    best = []
    for name in scores.ranked():
        block, neuron = (int(part[1:]) for part in name.split("."))
        if block in ranked:
            ranked[block].append(neuron)
            best.append(block)
    if isinstance(keep_ratio, Mapping):
        wanted = Counter({b: round(float(keep_ratio.get(b, 1.0)) * width[b]) for b in ranked})
    else:
        wanted = Counter(best[: round(float(keep_ratio) * len(best))])
    kept = {
        block: sorted(neurons[: multiple * max(1, math.ceil(wanted[block] / multiple))])
        for block, neurons in ranked.items()
    }
    return {block: some for block, some in kept.items() if len(some) < width[block]}


def removed_neurons(
    vit: ViT, kept: KeptNeurons, means: Mapping[int, Float[Tensor, "token _neuron"]] | None
) -> dict[int, RemovedNeurons]:
    """The removed neurons, with their ablated activations: their means, or 0 without any."""
    removed = {}
    for block, neurons in kept.items():
        gone = torch.ones(vit.config.mlp_width[block], dtype=torch.bool)
        gone[neurons] = False
        values = vit.positions.new_zeros(1, len(gone)) if means is None else means[block]
        removed[block] = RemovedNeurons(gone.to(vit.positions.device), values)
    return removed


def fold_neurons(
    compiled: ViT, kept: KeptNeurons, removed: Mapping[int, RemovedNeurons] | None
) -> ViT:
    """The compiled model with the kept neurons alone.

    Args:
        compiled: the kept units, with whole MLPs.
        kept: the kept neurons by block; other blocks keep all.
        removed: those whose values are added to the MLP's constant; None where they are 0.
    """
    smaller = keep(compiled, neurons=kept)
    if removed is None:
        return smaller
    weights, whole = smaller.state_dict(), compiled.state_dict()
    for block, neurons in removed.items():
        constant = (neurons.values * neurons.gone) @ whole[f"blocks.{block}.mlp.fc2.weight"].T
        constant = constant.expand(compiled.config.tokens, -1)
        name = f"blocks.{block}.mlp_constant"
        weights[name] = weights[name] + constant if name in weights else constant
    constants = enumerate(smaller.config.mlp_constant)
    config = replace(
        smaller.config, mlp_constant=tuple(had or block in removed for block, had in constants)
    )
    return rebuilt(smaller, config, weights)
