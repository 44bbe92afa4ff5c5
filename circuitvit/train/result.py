"""What a training gives: the model, how it went, and the figure of its gradients."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuitvit.charts.chart import Figure
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.vit import ViT
from circuitvit.train.adapter import AdaptedViT, Adapter
from circuitvit.train.gradient_flow import gradient_figure

AnyViT = ViT | CircuitViT
Model = TypeVar("Model", bound=AnyViT)
Trained = TypeVar("Trained", bound=AnyViT | AdaptedViT)


@dataclass(frozen=True, eq=False)
class Training(Generic[Trained]):
    """What a training gave.

    Attributes:
        vit: the model after the last epoch, or the average of its weights where the recipe has an
            `ema_decay`; in eval mode, on the device of the model that was given. It keeps the
            preprocessing of its training images (that of the model where they have none) with their
            class names. With `tune="adapter"` it is an `AdaptedViT`: the
            backbone that was given and the adapter in it.
        history: for each epoch its number from 1, `loss` (mean over its steps, as the recipe
            smooths, mixes and distills it), `validation_accuracy` (0–1) and `validation_loss`
            (nats) of what `vit` would be then, `learning_rate` (of its last step),
            `gradient_norm` (mean over its steps, before clipping), `gradients` (mean |gradient| of
            each layer, likewise), `seconds`.
        best: likewise after the epoch that was best on the validation images; None where the
            recipe doesn't keep it.
        best_epoch: its number, from 1, as the recipe's `watch` tells.
    """

    vit: Trained
    history: tuple[dict[str, Any], ...]
    best: Trained | None
    best_epoch: int

    @property
    def adapter(self) -> Adapter | None:
        """With `tune="adapter"`, the adapter of `vit` on its own; that of `best` is its own."""
        vit: Any = self.vit
        return vit.adapter if isinstance(vit, AdaptedViT) else None

    def gradient_flow(self) -> Figure:
        """How much gradient reached each layer in each epoch, on a logarithmic scale.

        Raises:
            CircuitError: the checkpoint that was resumed is older than these records.
        """
        return gradient_figure(self.history)
