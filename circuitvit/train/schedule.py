"""The learning rate over a training: a line up, then half a cosine down."""

import math
from typing import Literal

ScheduleBy = Literal["step", "epoch"]


def learning_rate_at(
    step: int,
    *,
    steps_an_epoch: int,
    epochs: int,
    warmup_epochs: int | float,
    peak: int | float,
    final: int | float,
    by: ScheduleBy,
) -> float:
    """The learning rate of one step, counted from 0 over the whole training.

    It rises in equal steps, reaches its peak at the last step of the warm-up, and falls along half
    a cosine that would reach `final` one step after the last. By epochs, it changes between epochs
    only, and the same holds with epochs for steps. The warm-up is rounded to whole ones, and has at
    most half of all, rounded down; one alone would be at the peak already, so none is kept for it.
    """
    if by == "epoch":
        step, steps_an_epoch = step // steps_an_epoch, 1
    total = epochs * steps_an_epoch
    warmup = min(round(min(warmup_epochs, epochs) * steps_an_epoch), total // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))
