"""Which epoch was best on the validation images, and whether it's time to stop."""

from collections.abc import Sequence
from typing import Any

from circuitvit.train.recipe import Recipe


def best_epoch(history: Sequence[dict[str, Any]], recipe: Recipe) -> int | None:
    """The number, from 1, of the first epoch that no later one beats; None before the first."""
    if not history:
        return None
    sign = -1 if recipe.watch == "loss" else 1
    return max(history, key=lambda entry: sign * entry[f"validation_{recipe.watch}"])["epoch"]


def is_over(history: Sequence[dict[str, Any]], recipe: Recipe) -> bool:
    """Whether the last epoch is done, or `patience` epochs have passed without a better one."""
    if len(history) >= recipe.epochs:
        return True
    if recipe.patience is None:
        return False
    best = best_epoch(history, recipe)
    return best is not None and len(history) - best >= recipe.patience
