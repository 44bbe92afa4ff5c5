"""What a trained model's history says: the recipe, the images, the teacher, and how it went."""

from collections.abc import Mapping
from typing import Any

from circuitvit.models.history import after
from circuitvit.models.saved_model import SavedModel
from circuitvit.train.adapter import AdaptedViT
from circuitvit.train.recipe import Recipe
from circuitvit.train.result import Training


def with_history(
    training: Training[Any], vit: Any, run: Mapping[str, Any], recipe: Recipe, teacher: Any
) -> Training[Any]:
    """The training, whose models now tell of it; a model with an adapter keeps no history.

    Args:
        training: what came out.
        vit: the model that it started from.
        run: what makes it this training and no other.
        recipe: how it was trained.
        teacher: what it learned from as well; None without one.
    """
    for model, epochs in (
        (training.vit, len(training.history)),
        (training.best, training.best_epoch),
    ):
        if model is None or isinstance(model, AdaptedViT):
            continue
        last = training.history[epochs - 1]
        details = {
            "epochs": epochs,
            "validation_accuracy": last["validation_accuracy"],
            "teacher": None if teacher is None else _teacher(teacher, run),
            "recipe": recipe.as_dict(),
            "training_images": run["training images"],
            "validation_images": run["validation images"],
        }
        model.history = after(vit.history, "trained", details, run["initial weights"])
    return training


def _teacher(teacher: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher was: its class, and the fingerprint that it goes by."""
    own = teacher.fingerprint() if isinstance(teacher, SavedModel) else run["teacher"]
    return {"class": type(teacher).__name__, "fingerprint": own}
