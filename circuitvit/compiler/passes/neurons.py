"""Pass: fewer neurons in the MLPs that stay; what the others write becomes a constant.

A removed neuron gives its ablated post-activation: 0 under `zero`, and under `mean` its mean over
the reference at each position, which fc2 turns into a constant [token width] beside the MLP.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.discover import EdgeScores
from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import same_edge_set
from circuitvit.graph.edge_graph import node_named
from circuitvit.intervene.ablated_run import RemovedNeurons
from circuitvit.intervene.surgery import keep, rebuilt
from circuitvit.models.vit import Block, ViT

Ratio = float | Mapping[int, float]
KeptNeurons = dict[int, list[int]]


def kept_neurons(
    scores: EdgeScores, units: Iterable[str], keep_ratio: Ratio, multiple: int
) -> KeptNeurons:
    """The neurons that stay in each kept MLP that loses some, ascending.

    Best is what scores most by size. A single ratio ranks the neurons of all kept MLPs together; a
    mapping ranks each block's own. Then each width is snapped up to a multiple of at least one, by
    the best of the rest, but never above what it was.
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
    """The neurons that go, with what they give instead: their means, or 0 without any."""
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
    """The compiled model with only the kept neurons.

    Args:
        compiled: the kept units, their MLPs still whole.
        kept: the neurons that stay, by block; other blocks keep theirs.
        removed: those whose values go into the MLP's constant; None where they are 0.
    """
    smaller = keep(compiled, neurons=kept)
    if removed is None:
        return smaller
    weights = smaller.state_dict()
    for block, neurons in removed.items():
        whole_block = compiled.blocks[block]
        assert isinstance(whole_block, Block)
        assert whole_block.mlp is not None
        constant = (neurons.values * neurons.gone) @ whole_block.mlp.fc2.weight.T
        constant = constant.expand(compiled.config.tokens, -1)
        name = f"blocks.{block}.mlp_constant"
        weights[name] = weights[name] + constant if name in weights else constant
    constants = enumerate(smaller.config.mlp_constant)
    config = replace(
        smaller.config, mlp_constant=tuple(had or block in removed for block, had in constants)
    )
    return rebuilt(smaller, config, weights)


def neuron_reasons(
    vit: ViT, neurons: object, keep_ratio: object, multiple: object
) -> Iterator[str]:
    """Why neurons can't be chosen like this."""
    if neurons is not None:
        yield from _score_reasons(vit.config, neurons)
        yield from _ratio_reasons(vit.config, keep_ratio)
    elif keep_ratio is not None:
        yield "keep_ratio needs neurons=scores, as cv.eap(..., level='neuron') gives them"
    try:
        if whole(multiple, "multiple") < 1:
            yield f"multiple is {multiple}, expected ≥ 1"
    except CircuitError as cause:
        yield str(cause).rstrip(".")


def _score_reasons(config: ViTConfig, neurons: object) -> Iterator[str]:
    if not isinstance(neurons, EdgeScores):
        yield (
            f"neurons are a {type(neurons).__name__}, expected the scores that "
            "cv.eap(..., level='neuron') gives"
        )
    elif neurons.provenance.level != "neuron":
        yield (
            f"neurons are scores of {neurons.provenance.level}s, expected those of "
            "cv.eap(..., level='neuron')"
        )
    elif not same_edge_set(config, neurons.config) or config.mlp_width != neurons.config.mlp_width:
        yield (
            f"the neuron scores belong to another model, with heads {neurons.config.heads} and "
            f"MLPs {neurons.config.mlp_width}; score the neurons of this one"
        )


def warn_of_other_weights(vit: ViT, neurons: EdgeScores) -> None:
    """Warn where the neurons were scored on other weights than these."""
    known = neurons.provenance.model
    if known is not None and known != vit.fingerprint():
        warn(
            f"these neurons were scored on other weights (fingerprint {known}), so their scores "
            "may mean nothing here. Score them again on this model to be sure."
        )


def _ratio_reasons(config: ViTConfig, keep_ratio: object) -> Iterator[str]:
    if keep_ratio is None:
        yield "neurons need keep_ratio, the share of them to keep, such as 0.5"
        return
    each = keep_ratio if isinstance(keep_ratio, Mapping) else {None: keep_ratio}
    for block, ratio in each.items():
        where = "keep_ratio" if block is None else f"keep_ratio of block {block!r}"
        if block is not None and not (block in range(config.depth) and config.mlp_width[block]):
            yield f"keep_ratio names block {block!r}, which has no MLP"
        try:
            if not 0 < real(ratio, where) <= 1:
                yield f"{where} is {ratio}, expected more than 0 and at most 1"
        except CircuitError as cause:
            yield str(cause).rstrip(".")
