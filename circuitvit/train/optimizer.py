"""The trained parameters, AdamW for them, and the moving average of the weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from circuitvit.train.recipe import Recipe

UNDECAYED = ("position", "token", "constant", "table", "pattern")
"""Words in the names of parameters that don't decay."""

TUNED = {"head": {"head"}, "adapter": {"head", "adapter"}}
"""The modules whose parameters are trained, by `Recipe.tune` where it isn't `all`."""


def trained_parameters(model: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    named = dict(model.named_parameters())
    if recipe.tune == "all":
        return named
    tuned = TUNED[recipe.tune]
    return {n: p for n, p in named.items() if tuned & {*n.split(".")[:-1]}}


def adamw(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW. Norms, biases, positions, tokens, constants and tables don't decay."""
    decayed, undecayed = [], []
    for name, parameter in trained_parameters(model, recipe).items():
        free = parameter.ndim < 2 or any(word in name for word in UNDECAYED)
        (undecayed if free else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate)


class WeightAverage:
    """The exponential moving average of a model's weights over the steps of its training.

    Args:
        model: what is trained; the average starts at its present weights.
        decay: d, the weight of the old average at each step, 0–1. At step s it is
            min(d, (1 + s) / (10 + s)), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, trained: nn.Module, step: int) -> None:
        """Add the weights after a step, counted from 0 over the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), trained.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mine, value in zip(self.model.buffers(), trained.buffers(), strict=True):
            mine.copy_(value)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Set the average to a checkpoint's."""
        self.model.load_state_dict(weights)
