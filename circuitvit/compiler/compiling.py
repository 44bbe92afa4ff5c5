"""The verb `compile`: it checks, calls the passes in order, and verifies."""

import warnings
from typing import Literal, overload

import torch
from torch import Tensor

from circuitvit.circuit import Ablation, Circuit, edges_among
from circuitvit.circuit_vit import CircuitViT
from circuitvit.compiler.check import check
from circuitvit.compiler.constant_nodes import find_constants
from circuitvit.compiler.constants import fold_constants
from circuitvit.compiler.dead_nodes import drop_dead
from circuitvit.compiler.lowering import lower
from circuitvit.compiler.program import Program
from circuitvit.compiler.sharing import share
from circuitvit.compiler.verify import verify
from circuitvit.surgery import keep_units
from circuitvit.vit import ViT
from circuitvit.writes import ablated_values


@overload
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["unit"] = "unit",
    ablation: Ablation = "zero",
    reference: Tensor | None = None,
) -> ViT: ...
@overload
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["edge"],
    ablation: Ablation = "zero",
    reference: Tensor | None = None,
) -> CircuitViT: ...
@torch.no_grad()
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["unit", "edge"] = "unit",
    ablation: Ablation = "zero",
    reference: Tensor | None = None,
) -> ViT | CircuitViT:
    """Make the smaller ViT that computes a circuit.

    `level="unit"` keeps the heads and MLPs on a kept path from `embed` to `logits`, with every edge
    among them; removed units write their ablated value everywhere. Under `zero` that is nothing.
    Under `mean` it is a constant, which is added by the attention or MLP before it that stays, or
    with the positions.

    `level="edge"` computes the edge circuit itself: every reader has a copy of the stream of its
    own, what is constant is folded into tables, and what is alike is shared. `explain()` of the
    result tells what became of each block. Sums and LayerNorms are added where edges are removed,
    so it is faster only where much is gone: measure it.

    Either result is compared with the masked run before it is returned: on `reference`, or else on
    8 seeded normal images.

    Args:
        vit: the model; it is not changed.
        circuit: found on it, under any ablation.
        level: `unit` or `edge`.
        ablation: `zero` or `mean`; `patch` needs a corrupt image at run time.
        reference: images for `mean` and to verify on, [image channel height width].

    Returns:
        For `unit` a `ViT` with a smaller config, for `edge` a `CircuitViT`; in the mode of the old
        one. Either trains, saves and loads like any other.

    Raises:
        CircuitError: it can't be compiled (every reason is named), or the result differs from the
            masked run by more than 1e-4·max(1, max|logit|) in fp32, 1e-9 likewise in fp64.
    """
    check(vit, circuit, level=level, ablation=ablation, reference=reference)
    if level == "edge":
        return _compiled_edges(vit, circuit, ablation, reference)
    units = circuit.units()
    if not units and "embed->logits" not in circuit:
        warnings.warn(
            f"the circuit has no kept path from embed to logits ({len(circuit)} edges), so no head "
            "and no MLP is kept; scores.greedy(n) keeps paths.",
            stacklevel=3,
        )
    ablated = ablated_values(vit, ablation, reference=reference)
    compiled = keep_units(vit, units)
    if ablation == "mean":
        compiled = fold_constants(vit, compiled, units, ablated)
    verify(vit, compiled, edges_among(vit.config, units, "split"), ablated, reference=reference)
    return compiled


def _compiled_edges(
    vit: ViT, circuit: Circuit, ablation: Ablation, reference: Tensor | None
) -> CircuitViT:
    ablated = ablated_values(vit, ablation, reference=reference)
    program = drop_dead(Program.of(vit, circuit, ablated))
    program = drop_dead(find_constants(program))
    if not program.live("logits"):
        warnings.warn(
            f"no kept path leads from embed to logits ({len(circuit)} edges), so the compiled "
            "model gives the same logits for every image; scores.greedy(n) keeps paths.",
            stacklevel=4,
        )
    compiled = lower(share(program), vit.positions.dtype)
    verify(vit, compiled, circuit.edges, ablated, reference=reference, qkv=circuit.qkv)
    return compiled
