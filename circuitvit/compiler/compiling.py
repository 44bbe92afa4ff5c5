"""The verb `compile`: it checks, calls the passes in order, and verifies."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from circuitvit.circuit import Ablation, Circuit
from circuitvit.compiler.check import check
from circuitvit.compiler.constants import fold_constants
from circuitvit.compiler.verify import verify
from circuitvit.surgery import keep_units
from circuitvit.vit import ViT
from circuitvit.writes import ablated_values


@torch.no_grad()
def compile(  # noqa: A001
    vit: ViT,
    circuit: Circuit,
    *,
    level: Literal["unit", "edge"] = "unit",
    ablation: Ablation = "zero",
    reference: Tensor | None = None,
) -> ViT:
    """Make the smaller ViT that computes a circuit.

    `level="unit"` keeps the heads and MLPs on a kept path from `embed` to `logits`, with every edge
    among them; removed units write their ablated value everywhere. Under `zero` that is nothing.
    Under `mean` it is a constant, which is added by the attention or MLP before it that stays, or
    with the positions. The result is compared with the masked run before it is returned: on
    `reference`, or else on 8 seeded normal images.

    Args:
        vit: the model; it is not changed.
        circuit: found on it, under any ablation.
        level: `unit`; `edge`, the edge circuit itself, is not there yet.
        ablation: `zero` or `mean`; `patch` needs a corrupt image at run time.
        reference: images for `mean` and to verify on, [image channel height width].

    Returns:
        A `ViT` with a smaller config, in the mode of the old one; it trains, saves and loads alike.

    Raises:
        CircuitError: it can't be compiled (every reason is named), or the result differs from the
            masked run by more than 1e-4·max(1, max|logit|) in fp32, 1e-9 likewise in fp64.
    """
    check(vit, circuit, level=level, ablation=ablation, reference=reference)
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
    verify(vit, compiled, units, ablated, reference=reference)
    return compiled
