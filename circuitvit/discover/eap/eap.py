"""Edge attribution patching: how much each edge matters, from gradients.

An edge's score is Σ (ã_w − a_w) · ∂ℓ/∂x_r over tokens and width, averaged over images; positive
means that removing it hurts. `METHODS` differ in where the gradient is taken, and in what is passed
back; `exact` and `random` are the slow truth and the control. What a pass computes is in
`attribution`, what is passed back in `rules`, the sums over edges in `products`.
"""

from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import whole
from circuitvit.config import ViTConfig
from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.discover.acdc.search import EdgeSearch
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.discover.eap.edge_products import EdgeSums
from circuitvit.discover.eap.gradient_passes import GRADIENT_METHODS, INPUT_METHODS, Attribution
from circuitvit.discover.scores import EdgeScores, Positions, names_at, units_at
from circuitvit.discover.task import discovery_task
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Level
from circuitvit.graph.edge_graph import (
    Qkv,
    node_named,
    readers_of,
    units_of,
    writers_before,
    writers_of,
)
from circuitvit.images import Pairs
from circuitvit.intervene.circuit_runs import logits_without
from circuitvit.intervene.metrics import Metric, check_differentiable
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.vit import PARTS, ViT
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes


@torch.no_grad()
def exact_scores(task: PatchingTask, level: Level, qkv: Qkv) -> dict[str, float]:
    """The exact score of everything at a level; of edges, as ACDC measures if all of them stay."""
    names = names_at(task.vit.config, level, qkv)
    if level == "edge":
        everything = Decisions(tau=-torch.inf, tie=0.0)
        with progress("exact scores", len(names)) as advance:
            EdgeSearch(SearchSettings(task, qkv=qkv), everything, keep_all=True).edges(advance)
        return everything.rises
    removed = [(), *(units_at(task.vit.config, level, [name]) for name in names)]
    with progress("exact scores", len(removed) * len(task.pairs)) as advance:
        full, *others = logits_without(task, removed, advance=advance)
    start = task.mean_loss(full, full)
    return {
        name: task.mean_loss(logits, full) - start
        for name, logits in zip(names, others, strict=True)
    }


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


METHODS = (*GRADIENT_METHODS, "exact", "random")
LEVELS = ("edge", "node", "block", "neuron")
Autocast = Literal["bf16"]


@in_default_modes
def eap(
    vit: ViT,
    pairs: Pairs,
    *,
    metric: Metric = "logit_difference",
    method: str = "eap",
    steps: int = 5,
    ablation: Ablation = "patch",
    level: Level | Literal["neuron"] = "edge",
    qkv: Qkv = "split",
    positions: Positions | None = None,
    reference: Tensor | None = None,
    autocast: Autocast | None = None,
    seed: int = 0,
) -> EdgeScores:
    """Score every edge (or node, block or neuron).

    The methods are:

    * `eap` (Syed et al. 2024): the gradient at the clean images.
    * `eap-ig-inputs` (Hanna et al. 2024): the mean of gradients at `steps` points on the straight
      line from the corrupt embeddings (included) to the clean ones.
    * `eap-ig-activations` (Hanna et al. 2024): one writer group at a time (embed; a block's heads;
      an MLP) goes from its ablated to its clean values, in `steps` points that end with the clean
      ones, and only the group's own out-edges are credited with the mean gradient. The authors'
      code credits the edges of all readers at every pass, also those whose writer did not move.
    * `clean-corrupted`: the mean of the gradients at both ends.
    * `gim` (Edin et al. 2025) and `relp` (Jafari et al. 2025): a modified gradient at the clean
      images, defined in `circuitvit.discover.eap.gradient_passes`.
    * `exact`: ℓ(without it) − ℓ(full), one ablated run each.
    * `random`: the control.

    `EdgeScores.ensemble` combines several. Pairs stream in batches, which shrink by themselves when
    memory runs out. A model in half precision is scored in single, with the same weights.

    Args:
        vit: the model; it is not changed.
        pairs: clean images, with what the ablation and the metric need.
        metric: a name or a callable, to be minimised; see `circuitvit.intervene.metrics`.
        method: one of `METHODS`, as above.
        steps: points of the two interpolating methods, ≥ 1.
        ablation: what removed edges carry; `eap-ig-inputs` and `clean-corrupted` take `patch` only.
        level: a node's score is that of all its out-edges together, a block's that of all its
            out-edges that leave the block; a neuron's is Σ (ã − a)·∂ℓ/∂a over tokens, with a its
            value after the activation.
        qkv: whether a head's query, key and value are scored apart.
        positions: `class/patch` scores the tokens before the first patch (class token and
            registers) and the patch tokens apart, under names such as `embed->m0@class`.
        reference: images for `mean`, [image channel height width].
        autocast: `bf16` runs the passes of the gradient methods under autocast to bfloat16, and
            adds up in single precision or more; recorded in the name of the method.
        seed: draws the scores of `random`.

    Raises:
        CircuitError: the input doesn't fit together, the metric has no use for gradients, or memory
            does not suffice for one pair.
    """
    steps, seed = whole(steps, "steps"), whole(seed, "seed")
    _check_method(method, metric=metric, steps=steps, ablation=ablation)
    task = discovery_task(
        vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference,
        levels=LEVELS,
    )  # fmt: skip
    _check_options(vit, method, level=level, positions=positions, autocast=autocast)
    attribution = Attribution(task, method, steps, autocast == "bf16")
    names = names_at(vit.config, level, qkv, positions)
    if method == "random":
        drawn = torch.randn(len(names), generator=torch.Generator().manual_seed(seed))
        values = dict(zip(names, drawn.tolist(), strict=True))
    elif method == "exact":
        values = exact_scores(task, cast(Level, level), qkv)
    else:
        values = _gradient_scores(attribution, level, qkv, positions)
    origin = task.provenance(
        method=method if autocast is None else f"{method} ({autocast})",
        level=level,
        steps=steps if method.startswith("eap-ig") else None,
        seed=seed if method == "random" else None,
    )
    return EdgeScores(vit.config, values, qkv=qkv, positions=positions, provenance=origin)


def _gradient_scores(
    attribution: Attribution, level: str, qkv: Qkv, positions: Positions | None
) -> dict[str, float]:
    """Means over images of a gradient method, by name."""
    vit, images = attribution.task.vit, len(attribution.task.pairs)
    if level == "neuron":
        sums = neuron_values(attribution.neuron_sums())
    else:
        spans = {"": slice(None)}
        if positions is not None:
            first = vit.config.prefix_tokens
            spans = {"@class": slice(0, first), "@patch": slice(first, None)}
        by_edge = attribution.edge_sums(tuple(spans.values()))
        sums = {
            f"{name}{mark}": value
            for place, mark in enumerate(spans)
            for name, value in summed_at(
                vit.config, level, qkv, edge_values(vit.config, by_edge, place, qkv)
            ).items()
        }
    return {name: value / images for name, value in sums.items()}


def _check_method(method: str, *, metric: Metric, steps: int, ablation: Ablation) -> None:
    if method not in METHODS:
        raise CircuitError(f"method is {method!r}, expected one of {METHODS}.")
    if steps < 1:
        raise CircuitError(f"steps is {steps}, expected ≥ 1.")
    if method in INPUT_METHODS and ablation != "patch":
        raise CircuitError(
            f"method {method!r} goes from the corrupt to the clean image, so it takes "
            f"ablation='patch' only, got {ablation!r}. Use method='eap', 'eap-ig-activations' or "
            "'exact'."
        )
    if method in GRADIENT_METHODS:
        check_differentiable(metric, method, steps=steps)


def _check_options(
    vit: ViT, method: str, *, level: str, positions: str | None, autocast: str | None
) -> None:
    """Refuse options that the method or the model can't take, all at once."""
    apart, gradient = positions is not None, method in GRADIENT_METHODS
    complaints = (
        (
            positions not in (None, *get_args(Positions)),
            f"positions is {positions!r}, expected None or one of {get_args(Positions)}",
        ),
        (
            apart and level not in ("edge", "node"),
            f"positions go with level='edge' or 'node', got level={level!r}",
        ),
        (
            apart and not vit.config.prefix_tokens,
            "positions are asked for, but this ViT has no class token",
        ),
        (
            autocast not in (None, *get_args(Autocast)),
            f"autocast is {autocast!r}, expected None or one of {get_args(Autocast)}",
        ),
        (
            autocast is not None and not gradient,
            f"autocast goes with the gradient methods, got method={method!r}",
        ),
        (
            autocast is not None and vit.positions.dtype != torch.float32,
            f"autocast needs float32 weights, these are {vit.positions.dtype}",
        ),
        (
            method == "exact" and (apart or level == "neuron"),
            "method='exact' scores whole edges, nodes and blocks; use a gradient method",
        ),
        (
            method == "eap-ig-activations" and level == "neuron",
            "method='eap-ig-activations' moves whole MLPs, not neurons; use 'eap-ig-inputs'",
        ),
    )
    problems = [complaint for wrong, complaint in complaints if wrong]
    if problems:
        raise CircuitError("these options don't go together: " + "; ".join(problems) + ".")
