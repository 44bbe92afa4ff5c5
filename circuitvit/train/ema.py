"""The exponential moving average of a model's weights over the steps of its training."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """A second model, whose weights follow those of the first.

    Args:
        model: what is trained; its weights now are the average so far.
        decay: share of the average that stays at each step, 0–1. In the first steps less stays,
            (1 + step) ÷ (10 + step), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, trained: nn.Module, step: int) -> None:
        """Take the weights after a step, counted from 0 over the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), trained.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mine, value in zip(self.model.buffers(), trained.buffers(), strict=True):
            mine.copy_(value)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put back what a checkpoint kept."""
        self.model.load_state_dict(weights)
