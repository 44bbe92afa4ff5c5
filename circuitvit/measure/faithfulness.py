"""How much of the model's behaviour a circuit keeps."""

import torch
from torch import Tensor

from circuitvit.ablation import run_circuit
from circuitvit.checks import check_vit
from circuitvit.circuit import Ablation, Circuit
from circuitvit.errors import CircuitError
from circuitvit.images import Pairs
from circuitvit.metrics import Metric, loss_of
from circuitvit.vit import ViT


def faithfulness(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: Metric = "kl",
    ablation: Ablation = "patch",
    reference: Tensor | None = None,
) -> float:
    """f(C) = (m(C) − m(∅)) / (m(full) − m(∅)), from means over the pairs; 1 is the full model.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: best ones that discovery has not seen.
        metric: m; a name or a callable, see `circuitvit.metrics`.
        ablation: what removed edges carry.
        reference: images for `mean`.

    Raises:
        CircuitError: removing everything hardly changes the metric, so the ratio means nothing.
    """
    check_vit(vit)
    pairs = pairs.to(vit.positions.device)
    loss = loss_of(metric, pairs, vit.config.classes)

    def run(kept: Circuit) -> Tensor:
        return run_circuit(vit, kept, pairs, ablation=ablation, reference=reference)

    logits = run(circuit)
    empty = run(circuit.keeping(()))
    with torch.no_grad():
        full = torch.cat([vit(chunk) for chunk in pairs.clean.split(256)])
        means = [float(loss(x, pairs, full).double().mean()) for x in (logits, empty, full)]
    own, nothing, everything = means
    if abs(everything - nothing) < 1e-6 * max(1.0, abs(everything), abs(nothing)):
        raise CircuitError(
            f"the metric is {everything:.3g} for the full model and {nothing:.3g} with no edges, "
            "so faithfulness is undefined. Choose pairs on which the model behaves differently."
        )
    return (own - nothing) / (everything - nothing)
