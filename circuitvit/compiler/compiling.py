"""`compile`: checks its arguments, calls the passes in order, and verifies the result."""

from collections.abc import Mapping
from typing import Any, Literal, overload

from jaxtyping import Float
from torch import Tensor

from circuitvit.compiler.blueprint import Blueprint, blueprint_of
from circuitvit.compiler.passes.fold_constants import fold_constants
from circuitvit.compiler.passes.fold_means import fold_means
from circuitvit.compiler.passes.lowering import lower
from circuitvit.compiler.passes.neurons import Ratio, fold_neurons, removed_neurons
from circuitvit.compiler.passes.sharing import drop_dead, share
from circuitvit.compiler.program import Program
from circuitvit.compiler.validating import (
    MULTIPLE,
    Options,
    check_compilable,
    compiled_under,
    verify,
    warn_of_other_weights,
    warn_of_zero,
)
from circuitvit.discover import EdgeScores
from circuitvit.errors import warn
from circuitvit.graph.circuit import Ablation, Circuit, edges_among
from circuitvit.graph.controls import Units
from circuitvit.graph.edge_graph import edge_count
from circuitvit.intervene.ablated_run import RemovedNeurons
from circuitvit.intervene.surgery import keep_units
from circuitvit.intervene.writer_outputs import ablated_values, neuron_means
from circuitvit.measure.models.cost import Costs
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.history import History, after
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import without_gradients


@overload
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["unit"] = "unit",
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
    neurons: EdgeScores | None = None,
    keep_ratio: Ratio | None = None,
    multiple: int = MULTIPLE,
    fresh: bool = False,
    seed: int = 0,
    target_latency: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    costs: Costs | None = None,
) -> ViT: ...
@overload
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["edge"],
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
) -> CircuitViT: ...
@without_gradients
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["unit", "edge"] = "unit",
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
    neurons: EdgeScores | None = None,
    keep_ratio: Ratio | None = None,
    multiple: int = MULTIPLE,
    fresh: bool = False,
    seed: int = 0,
    target_latency: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    costs: Costs | None = None,
) -> ViT | CircuitViT:
    """Make the smaller ViT that computes a circuit.

    `level="unit"` keeps the heads and MLPs on a kept path from `embed` to `logits`, with every edge
    among them; removed units write their ablated value everywhere. Under `zero` that is nothing.
    Under `mean` it is a constant, which is added by the last kept attention or MLP before it, or
    with the positions.

    `level="edge"` computes the edge circuit itself: every reader has its own copy of the residual
    stream, constants are folded into tables, and equal copies are shared. `explain()` of the result
    describes each block. Removed edges add sums and LayerNorms, so the model is faster only where
    much is removed: measure it.

    Either result is compared with the masked run before it is returned: on `reference`, or else on
    8 seeded normal images.

    With `neurons`, kept MLPs keep their best neurons only. A removed neuron has the activation 0,
    or under `mean` its mean activation at each position.

    With a target, units of the circuit are dropped until the model costs no more than that share of
    the dense one: first those whose removal adds the least loss for what it saves, ties by the
    pinned order. A unit that no longer fits is skipped and the next is tried. For a circuit of node
    scores (`eap(..., level="node").top(n)`), the loss is a unit's score, with a warning where these
    were found under another ablation. For any other, such as one of edges or
    `Circuit.full(vit.config)`, it is the KL to the dense model that the unit's removal adds on (64
    of) `reference`, or else on those 8 images. Such measured effects did better than node scores in
    every comparison (`experiments/budgets.py`). Units of random scores are in the order of the
    draw, whatever they cost. With `costs`, or a target other than the latency, nothing is timed.

    Args:
        vit: the model; it is not changed.
        circuit: found on it, under any ablation.
        level: `unit` or `edge`.
        ablation: `zero` or `mean`; `patch` needs a corrupt image at run time. By default `mean` for
            a circuit that was found under it, with `reference`, else `zero`; fresh weights use
            neither. It can differ from that of discovery. A combination of circuits of which some,
            but not all, were found under `mean` has no default.
        reference: images for `mean` and to verify on, [image channel height width].
        neurons: scores of neurons, from `eap(..., level="neuron")`.
        keep_ratio: share of the neurons to keep, above 0 and at most 1: one for all kept MLPs
            together, ranked by |score|, or one for each block, `{block: share}`; other blocks keep
            all.
        multiple: MLP widths are rounded up to a multiple of this (16 suits CPUs, 64 GPUs) by the
            best of the other neurons, never above the old width; so it is also the fewest neurons
            of a kept block.
        fresh: return new random weights in the same shape, to be trained from scratch. The model
            has no constants for removed units and is not verified.
        seed: draws the fresh weights.
        target_latency: the time of a batch as a share of the dense model's, above 0 and at most 1.
            The model is timed beside the dense one, and the choice corrected, until it is within 2%
            of the target or a unit more would exceed it; otherwise there is a warning.
        target_macs: the multiply-accumulates likewise.
        target_parameters: the parameters likewise. At most one target is given.
        costs: measured times for `target_latency`, such as of another machine or batch. With them
            nothing is timed, and the choice is the same every time. By default they are measured
            on the model's device at batch 64, and the choice is corrected.

    Returns:
        For `unit` a `ViT` with a smaller config, for `edge` a `CircuitViT`; in train or eval mode
        like `vit`. Either trains, saves and loads like any other.

    Raises:
        CircuitError: it can't be compiled (every reason is named), the target leaves no model that
            reads images (the least share that does is named), or the result differs from the masked
            run by more than 1e-4·max(1, max|logit|) in fp32, 1e-9 likewise in fp64, 1e-1 in half
            precision (compile in fp32 and convert the result, which is more exact).
    """
    targets = {
        "target_latency": target_latency,
        "target_macs": target_macs,
        "target_parameters": target_parameters,
    }
    options = Options(neurons, keep_ratio, multiple, fresh, seed, targets, costs)
    under = compiled_under(circuit, ablation, fresh=fresh)
    check_compilable(
        vit, circuit, level=level, ablation=under, reference=reference, options=options
    )
    warn_of_zero(circuit, ablation, fresh=fresh)
    if level == "edge":
        compiled = _compiled_edges(vit, circuit, under, reference)
    else:
        compiled = _compiled_units(vit, circuit, under, reference, options)
    compiled.history = compiled_history(
        vit, compiled, circuit,
        level=level, ablation=under, reference=reference, options=options,
    )  # fmt: skip
    return compiled


def _compiled_units(
    vit: ViT, circuit: Circuit, ablation: Ablation, reference: Tensor | None, options: Options
) -> ViT:
    if options.neurons is not None:
        warn_of_other_weights(vit, options.neurons)
    if not circuit.units() and "embed->logits" not in circuit:
        warn(
            f"the circuit has no kept path from embed to logits ({len(circuit)} edges), so no head "
            "and no MLP is kept; scores.greedy with more edges finds one."
        )
    kept = blueprint_of(vit, circuit, options, ablation=ablation, reference=reference)
    _warn_of_little(circuit.units(), kept.units)
    if options.fresh:
        shape = kept.shape(vit.config, ablation, fresh=True)
        new = ViT(shape, seed=options.seed).to(vit.positions).train(vit.training)
        new.preprocessing = vit.preprocessing
        return new
    ablated = ablated_values(vit, ablation, reference=reference)
    means = None
    if ablation == "mean" and kept.neurons and reference is not None:
        means = neuron_means(vit, reference)
    removed = removed_neurons(vit, kept.neurons, means)
    compiled = _cut(vit, kept, ablation, ablated, removed)
    edges = edges_among(vit.config, kept.units, "split")
    verify(vit, compiled, edges, ablated, reference=reference, neurons=removed)
    return compiled


def _warn_of_little(before: Units, after: Units) -> None:
    """Warn where a budget leaves heads alone, or MLPs alone."""
    heads, mlps = ([unit for unit in after if (unit[0] == "a") is kind] for kind in (True, False))
    had_both = len({unit[0] for unit in before}) == 2
    if had_both and not (heads and mlps):
        warn(
            f"this budget leaves {len(heads)} heads and {len(mlps)} MLPs, which is hardly a model; "
            "ask for a larger one."
        )


def _compiled_edges(
    vit: ViT, circuit: Circuit, ablation: Ablation, reference: Tensor | None
) -> CircuitViT:
    ablated = ablated_values(vit, ablation, reference=reference)
    program = drop_dead(Program.of(vit, circuit, ablated))
    program = drop_dead(fold_constants(program))
    if not program.live("logits"):
        warn(
            f"no kept path leads from embed to logits ({len(circuit)} edges), so the compiled "
            "model has the same logits for every image; scores.greedy with more edges finds one."
        )
    compiled = lower(share(program), vit.positions.dtype)
    verify(vit, compiled, circuit.edges, ablated, reference=reference, qkv=circuit.qkv)
    return compiled


def _cut(
    vit: ViT,
    kept: Blueprint,
    ablation: Ablation,
    ablated: Float[Tensor, " writer #image #token #width"],
    removed: Mapping[int, RemovedNeurons],
) -> ViT:
    """The smaller model, with the mean of what was removed in its constants."""
    compiled = keep_units(vit, kept.units)
    if ablation == "mean":
        compiled = fold_means(vit, compiled, kept.units, ablated)
    if kept.neurons:
        compiled = fold_neurons(compiled, kept.neurons, removed if ablation == "mean" else None)
    return compiled


def compiled_history(
    vit: ViT,
    compiled: ViT | CircuitViT,
    circuit: Circuit,
    *,
    level: str,
    ablation: str,
    reference: Tensor | None,
    options: Options,
) -> History:
    """The history of the model that was compiled, with the compilation as its last step."""
    origin, (heads, neurons) = circuit.provenance, compiled.units_kept()
    details: dict[str, Any] = {
        "found_by": origin.method,
        "selection": origin.selection,
        "search": {
            name: getattr(origin, name)
            for name in ("level", "tau", "metric", "ablation", "steps", "images", "seed", "model")
            if getattr(origin, name) is not None
        },
        "edges": f"{len(circuit):,} of {edge_count(circuit.config, circuit.qkv):,}",
        "level": level,
        "ablation": ablation,
        "reference_images": None if reference is None else len(reference),
        "budget": {name: share for name, share in options.targets.items() if share is not None},
        "neurons": _neurons(options),
        "heads_kept": f"{sum(heads):,} of {sum(vit.config.heads):,}",
        "neurons_kept": f"{sum(neurons):,} of {sum(vit.config.mlp_width):,}",
        "new_random_weights": {"seed": options.seed} if options.fresh else None,
    }
    return after(vit.history, "compiled", details, vit.fingerprint())


def _neurons(options: Options) -> dict[str, Any]:
    """How neurons were chosen; empty if all were kept."""
    scores, ratio = options.neurons, options.keep_ratio
    if scores is None or ratio is None:
        return {}
    shares = ratio if isinstance(ratio, float | int) else [f"m{b} {r}" for b, r in ratio.items()]
    return {
        "scored_by": scores.provenance.method,
        "keep_ratio": shares,
        "multiple": options.multiple,
    }
