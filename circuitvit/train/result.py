"""The result of a training: the models with their histories, and its course."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuitvit.charts.chart import AnyFigure
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.history import after
from circuitvit.models.saved_model import SavedModel
from circuitvit.models.vit import ViT
from circuitvit.train.adapter import AdaptedViT, Adapter
from circuitvit.train.epoch_records import gradient_figure
from circuitvit.train.recipe import Recipe

AnyViT = ViT | CircuitViT
Trainable = TypeVar("Trainable", bound=AnyViT)
Trained = TypeVar("Trained", bound=AnyViT | AdaptedViT)


@dataclass(frozen=True, eq=False)
class Training(Generic[Trained]):
    """The result of a training.

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
        best: the model after the epoch that was best on the validation images; None where the
            recipe doesn't keep it.
        best_epoch: its number, from 1, by the recipe's `watch`.
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

    def gradient_flow(self) -> AnyFigure:
        """The mean gradient of each layer in each epoch, on a logarithmic scale.

        Raises:
            CircuitError: the checkpoint that was resumed is older than these records.
        """
        return gradient_figure(self.history)


def with_history(
    training: Training[Any], vit: Any, run: Mapping[str, Any], recipe: Recipe, teacher: Any
) -> Training[Any]:
    """The training, its models' histories extended by it; a model with an adapter has none.

    Args:
        training: the result.
        vit: the model that it started from.
        run: what identifies the training (`run_of`).
        recipe: how it was trained.
        teacher: the module that it was distilled from, or None.
    """
    for model, epochs in (
        (training.vit, len(training.history)),
        (training.best, training.best_epoch),
    ):
        if model is None or isinstance(model, AdaptedViT):
            continue
        details = {
            "epochs": epochs,
            "validation_accuracy": training.history[epochs - 1]["validation_accuracy"],
            "teacher": None if teacher is None else _teacher(teacher, run),
            "recipe": recipe.as_dict(),
            "training_images": run["training images"],
            "validation_images": run["validation images"],
        }
        model.history = after(vit.history, "trained", details, run["initial weights"])
    return training


def _teacher(teacher: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    own = teacher.fingerprint() if isinstance(teacher, SavedModel) else run["teacher"]
    return {"class": type(teacher).__name__, "fingerprint": own}
