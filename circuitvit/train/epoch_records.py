"""Records of a training's epochs: mean gradients, TensorBoard's curves, the best epoch.

No weight depends on any of it, but that `patience` ends the training.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from circuitvit.charts.chart import GRADIENT_FLOW, AnyFigure
from circuitvit.charts.timeline import timeline
from circuitvit.errors import CircuitError
from circuitvit.files import check_folder_writable
from circuitvit.train.recipe import Recipe

CURVES = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
}
"""TensorBoard's tags, by their key in the history."""

_OF_MLP = {"ln2", "mlp", "mlp_constant"}
_OF_HEAD = {"final_norm", "head"}


def best_epoch(history: Sequence[dict[str, Any]], recipe: Recipe) -> int:
    """The number, from 1, of the best epoch by `watch`, the first among equals; 0 before any."""
    if not history:
        return 0
    sign = -1 if recipe.watch == "loss" else 1
    return max(history, key=lambda entry: sign * entry[f"validation_{recipe.watch}"])["epoch"]


def is_over(history: Sequence[dict[str, Any]], recipe: Recipe) -> bool:
    """Whether the last epoch is done, or `patience` epochs have passed without a better one."""
    if len(history) >= recipe.epochs:
        return True
    patience = recipe.patience
    return patience is not None and len(history) - best_epoch(history, recipe) >= patience


def layer_of(name: str) -> str:
    """The layer that a parameter of a ViT, CircuitViT or AdaptedViT belongs to, by its name."""
    parts = name.split(".")
    if "blocks" in parts:
        number, part = parts[parts.index("blocks") + 1 :][:2]
        return f"{'MLP' if part in _OF_MLP else 'attention'} {number}"
    if _OF_HEAD & {*parts}:
        return "head"
    return "tables" if parts[0] == "tables" else "embed"


def _layer_order(layer: str) -> tuple[int, int, str]:
    """Sorts layers from the embedding to the head."""
    kind, _, number = layer.partition(" ")
    if number:
        return 1, int(number), kind.lower()
    return (2 if kind == "head" else 0), 0, kind


class GradientFlow:
    """The mean |gradient| of each layer, collected over the steps of an epoch.

    It costs one more reduction over the gradients a step, as clipping does, and doesn't wait for a
    GPU.

    Args:
        model: what is trained; parameters that don't require a gradient are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, list[nn.Parameter]] = {}
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for layer in sorted({layer_of(name) for name in trained}, key=_layer_order):
            self.layers[layer] = [p for n, p in trained.items() if layer_of(n) == layer]
        self._steps: list[Float[Tensor, " layer"]] = []

    def record(self) -> None:
        """Add a step. Its gradients must be computed, unscaled and not yet clipped."""
        means = []
        for parameters in self.layers.values():
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = get_total_norm(gradients, norm_type=1.0)
            means.append(total.to(parameters[0].device) / sum(p.numel() for p in parameters))
        self._steps.append(torch.stack(means))

    def take_means(self) -> dict[str, float]:
        """The means over the steps since the last call, without steps that fp16 had to skip."""
        steps, self._steps = torch.stack(self._steps).double().cpu(), []
        kept = steps[torch.isfinite(steps).all(dim=1)]
        means = kept.mean(dim=0).tolist() if len(kept) else [math.nan] * len(self.layers)
        return {k: v for k, v in zip(self.layers, means, strict=True) if math.isfinite(v)}


def gradient_figure(history: Sequence[Mapping[str, Any]]) -> AnyFigure:
    """Layers by epochs, coloured by the logarithm of the mean |gradient|.

    Raises:
        CircuitError: no epoch has recorded gradients.
    """
    epochs = [entry.get("gradients", {}) for entry in history]
    layers = sorted({layer for epoch in epochs for layer in epoch}, key=_layer_order)
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


@contextmanager
def tensorboard_curves(
    folder: str | os.PathLike[str] | None,
    history: Sequence[Mapping[str, Any]],
    *,
    main: bool = True,
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds an epoch of the history to TensorBoard's curves in a folder.

    Points of later epochs than the history's are purged: a run that was killed after it wrote them
    and before its checkpoint repeats these epochs.

    Args:
        folder: for TensorBoard's files; None to write nothing.
        history: the epochs so far; they are written too where the folder has no curves yet.
        main: whether this process writes; every process checks that TensorBoard is there.

    Raises:
        CircuitError: TensorBoard (the extra `circuitvit[tensorboard]`) isn't installed, or the
            folder can't be written to.
    """
    if folder is None:
        yield lambda entry: None
        return
    writer_of = _summary_writer()
    if not main:
        yield lambda entry: None
        return
    earlier = any(Path(folder).glob("events.out.tfevents.*"))
    try:
        check_folder_writable(folder)
        writer = writer_of(str(folder), purge_step=len(history) + 1 if earlier else None)
    except (OSError, CircuitError) as cause:
        raise CircuitError(
            f"cannot write TensorBoard's curves to {folder} ({str(cause).rstrip('.')}). Name a "
            "folder that can be written to."
        ) from cause

    def write(entry: Mapping[str, Any]) -> None:
        for name, tag in CURVES.items():
            if entry.get(name) is not None:
                writer.add_scalar(tag, entry[name], entry["epoch"])
        writer.flush()

    try:
        for entry in () if earlier else history:
            write(entry)
        yield write
    finally:
        writer.close()


def _summary_writer() -> Any:
    """TensorBoard's writer; it is imported only when it is used."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as cause:
        raise CircuitError(
            f"tensorboard= needs TensorBoard, which can't be imported ({cause}). Install it with "
            "pip install 'circuitvit[tensorboard]', or leave tensorboard= out."
        ) from cause
    return SummaryWriter
