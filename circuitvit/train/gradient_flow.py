"""How much gradient reaches each layer: mean |gradient|, recorded at every step.

It costs one more pass over the gradients a step, as clipping does, and a GPU isn't waited for; no
weight depends on it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from circuitvit.charts.chart import Figure
from circuitvit.charts.readings import GRADIENT_FLOW
from circuitvit.charts.timeline import timeline
from circuitvit.errors import CircuitError

_OF_MLP = {"ln2", "mlp", "mlp_constant"}
_OF_HEAD = {"final_norm", "head"}


def layer_of(name: str) -> str:
    """The layer that a parameter of a ViT, CircuitViT or AdaptedViT belongs to, by its name."""
    parts = name.split(".")
    if "blocks" in parts:
        number, part = parts[parts.index("blocks") + 1 :][:2]
        return f"{'MLP' if part in _OF_MLP else 'attention'} {number}"
    if _OF_HEAD & {*parts}:
        return "head"
    return "tables" if parts[0] == "tables" else "embed"


def _place(layer: str) -> tuple[int, int, str]:
    kind, _, number = layer.partition(" ")
    if number:
        return 1, int(number), kind.lower()
    return (2 if kind == "head" else 0), 0, kind


class GradientFlow:
    """The mean |gradient| of each layer, gathered over the steps of an epoch.

    Args:
        model: what is trained; its parameters that learn are looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, list[nn.Parameter]] = {}
        learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for layer in sorted({layer_of(name) for name in learnt}, key=_place):
            self.layers[layer] = [p for n, p in learnt.items() if layer_of(n) == layer]
        self._steps: list[Float[Tensor, " layer"]] = []

    def record(self) -> None:
        """Take down a step: its gradients are there, unscaled and not yet clipped."""
        means = []
        for parameters in self.layers.values():
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = get_total_norm(gradients, norm_type=1.0)
            means.append(total.to(parameters[0].device) / sum(p.numel() for p in parameters))
        self._steps.append(torch.stack(means))

    def taken(self) -> dict[str, float]:
        """The mean over the steps since the last time; steps that fp16 had to skip don't count."""
        steps, self._steps = torch.stack(self._steps).double().cpu(), []
        kept = steps[torch.isfinite(steps).all(dim=1)]
        means = kept.mean(dim=0).tolist() if len(kept) else [math.nan] * len(self.layers)
        return {k: v for k, v in zip(self.layers, means, strict=True) if math.isfinite(v)}


def gradient_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Layers by epochs, coloured by the logarithm of the mean |gradient|.

    Raises:
        CircuitError: no epoch has recorded gradients.
    """
    epochs = [entry.get("gradients", {}) for entry in history]
    layers = sorted({layer for epoch in epochs for layer in epoch}, key=_place)
    if not layers:
        raise CircuitError(
            "no gradients were recorded: this training's checkpoint is of an older circuitvit. "
            "Train again, in another folder, to see them."
        )
    return timeline(
        layers,
        [entry["epoch"] for entry in history],
        [[epoch.get(layer) for epoch in epochs] for layer in layers],
        title="Gradient flow",
        subtitle="mean |∂loss/∂weight| of each layer, over the steps of an epoch, before clipping",
        reading=GRADIENT_FLOW,
        x_title="epoch",
        scale_title="mean |gradient|",
    )
