"""Edge attribution patching: how much each edge matters, from gradients.

Syed et al. 2024 (`eap`) and Hanna et al. 2024 (`eap-ig-inputs`, `clean-corrupted`). An edge's score
is Σ (ã_w − a_w) · ∂ℓ/∂x_r over tokens and width, averaged over images; positive means that removing
it hurts. `exact` and `random` are the slow truth and the control.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.ablation import EdgeMask, run_embedded, writer_values
from circuitvit.checks import whole
from circuitvit.circuit import Ablation, Level
from circuitvit.config import ViTConfig
from circuitvit.discover.exact import exact_scores
from circuitvit.discover.problem import Problem
from circuitvit.discover.scores import EdgeScores, names_at, units_at
from circuitvit.edge_graph import Qkv, edges_of, node_named, places_of, writers_before
from circuitvit.errors import CircuitError
from circuitvit.images import Pairs
from circuitvit.metrics import Metric, check_differentiable
from circuitvit.progress import progress
from circuitvit.vit import PARTS, ViT

METHODS = ("eap", "eap-ig-inputs", "clean-corrupted", "exact", "random")
IMAGES_AT_ONCE = 16

ReadScores = dict[str, Float[Tensor, "*_part_head _writer"]]
"""By `a{l}` [part head writer], `m{l}` [writer] and `logits` [writer]; float64 image sums."""


def eap(
    vit: ViT,
    pairs: Pairs,
    *,
    metric: Metric = "logit_difference",
    method: str = "eap",
    steps: int = 5,
    ablation: Ablation = "patch",
    level: Level = "edge",
    qkv: Qkv = "split",
    reference: Tensor | None = None,
    seed: int = 0,
) -> EdgeScores:
    """Score every edge (or node, or block).

    Args:
        vit: the model; it is not changed.
        pairs: clean images, with what the ablation and the metric need.
        metric: a name or a callable, to be minimised; see `circuitvit.metrics`.
        method: `eap`; `eap-ig-inputs`, the mean of gradients along the straight line from corrupt
            to clean embeddings; `clean-corrupted`, the mean of the gradients at both ends; `exact`,
            ℓ(without the edge) − ℓ(full), one ablated run each; `random`, the control.
        steps: points on the line of `eap-ig-inputs`, ≥ 1.
        ablation: what removed edges carry; the two interpolating methods take `patch` only.
        level: a node's score is that of all its out-edges together, a block's that of all its
            out-edges that leave the block.
        qkv: whether a head's query, key and value are scored apart.
        reference: images for `mean`, [image channel height width].
        seed: draws the scores of `random`.

    Raises:
        CircuitError: the input doesn't fit together, or the metric has no use for gradients.
    """
    if method not in METHODS:
        raise CircuitError(f"method is {method!r}, expected one of {METHODS}.")
    steps, seed = whole(steps, "steps"), whole(seed, "seed")
    if steps < 1:
        raise CircuitError(f"steps is {steps}, expected ≥ 1.")
    if method in ("eap-ig-inputs", "clean-corrupted") and ablation != "patch":
        raise CircuitError(
            f"method {method!r} goes from the corrupt to the clean image, so it takes "
            f"ablation='patch' only, got {ablation!r}. Use method='eap' or 'exact'."
        )
    if method not in ("exact", "random"):
        check_differentiable(metric, method)
    problem = Problem.checked(
        vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference
    )
    names = names_at(vit.config, level, qkv)
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        values = dict(
            zip(names, torch.randn(len(names), generator=generator).tolist(), strict=True)
        )
    elif method == "exact":
        values = exact_scores(problem, level, qkv)
    else:
        values = _at_level(vit.config, _summed(problem, method, steps), level, qkv)
        values = {name: value / len(pairs) for name, value in values.items()}
    origin = problem.provenance(
        method=method,
        level=level,
        steps=steps if method == "eap-ig-inputs" else None,
        seed=seed if method == "random" else None,
    )
    return EdgeScores(vit.config, values, qkv=qkv, provenance=origin)


def _summed(problem: Problem, method: str, steps: int) -> ReadScores:
    total: ReadScores = {}
    with torch.inference_mode(False), progress("EAP", len(problem.pairs)) as advance:
        for chunk in problem.chunks(IMAGES_AT_ONCE):
            for name, scores in _chunk_scores(problem, chunk, method, steps).items():
                total[name] = total[name] + scores if name in total else scores
            advance(steps=len(chunk))
    return total


def _chunk_scores(problem: Problem, chunk: Pairs, method: str, steps: int) -> ReadScores:
    vit = problem.vit
    with torch.no_grad():
        run = writer_values(vit, chunk.clean)
        difference = problem.ablated(chunk) - run.values
        points = [run.values[0]]
        if method != "eap":
            assert chunk.corrupt is not None
            clean, corrupt = run.values[0], vit.embed(chunk.corrupt)
            shares = (
                [0.0, 1.0] if method == "clean-corrupted" else [k / steps for k in range(steps)]
            )
            points = [corrupt + share * (clean - corrupt) for share in shares]

    def loss(logits: Tensor) -> Tensor:
        return problem.loss(logits, chunk, run.logits).sum()

    total: ReadScores = {}
    for point in points:
        for name, gradient in _read_gradients(vit, point, loss).items():
            before = difference[: _writers_before(vit.config, name)]
            scores = gradient.flatten(-3) @ before.flatten(1).T
            total[name] = total.get(name, 0) + scores.double() / len(points)
    return total


def _writers_before(config: ViTConfig, name: str) -> int:
    before = writers_before(config)
    return before[f"{name}.h0" if name.startswith("a") else name]


def _read_gradients(
    vit: ViT, embedded: Float[Tensor, "image token width"], loss: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """∂ℓ/∂x_r for every reader, in the full model from these embeddings on."""
    reads: dict[str, Tensor] = {}
    mask = EdgeMask.full(vit.config)
    start = embedded.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = run_embedded(vit, start, mask, start[None], on_read=reads.__setitem__).logits
        total = loss(logits)
        if not total.requires_grad:
            raise CircuitError(
                "the metric has no gradient with respect to the logits. Leave out argmax, detach "
                "and no_grad, or use method='exact'."
            )
        gradients = torch.autograd.grad(total, list(reads.values()))
    return dict(zip(reads, gradients, strict=True))


def _at_level(config: ViTConfig, sums: ReadScores, level: Level, qkv: Qkv) -> dict[str, float]:
    by_edge = _by_edge(config, sums, qkv)
    if level == "edge":
        return by_edge
    total: dict[str, float] = {}
    for name in names_at(config, level, qkv):
        inside = set(units_at(config, level, [name]))
        total[name] = sum(
            by_edge[edge.name]
            for edge in edges_of(config, qkv)
            if edge.writer in inside and node_named(edge.reader).unit not in inside
        )
    return total


def _by_edge(config: ViTConfig, sums: ReadScores, qkv: Qkv) -> dict[str, float]:
    places = places_of(config)
    lists = {name: values.tolist() for name, values in sums.items()}
    scores = {}
    for edge in edges_of(config, qkv):
        reader, place = node_named(edge.reader), places[edge.writer]
        if reader.kind != "head":
            scores[edge.name] = lists[reader.name][place]
            continue
        rows = lists[f"a{reader.block}"]
        parts = PARTS if reader.part is None else (reader.part,)
        scores[edge.name] = sum(rows[PARTS.index(part)][reader.head][place] for part in parts)
    return scores
