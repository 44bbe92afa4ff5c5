"""Pass: corrects a latency budget by timing the model that it leads to.

A table of costs has the time of each part alone, and in a model parts take another time. So the
model that the table leads to is timed beside the dense one. If its measured share is m, its
predicted share p and the target t, the budget is solved again for the predicted share t · p / m.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, warn
from circuitvit.graph.controls import Units
from circuitvit.measure.models.latency import interleaved
from circuitvit.models.vit import ViT
from circuitvit.progress import progress
from circuitvit.torch_modes import evaluating, in_default_modes

CLOSE = 0.02
"""Largest difference of the measured share from the target, relative to the target."""
ROUNDS = 6
"""Largest number of models that are timed."""
FEW = 3
"""Timings of each of them, beside the dense model."""
TIMINGS = 7
"""Timings of the model that is chosen."""
DOUBLINGS = 7
"""How often a step to larger models is doubled; at most 12 times the size."""


def corrected(
    target: float,
    solve: Callable[[float], Units],
    predict: Callable[[Units], float],
    measure: Callable[[Units, int], float],
) -> Units:
    """The units of the largest model whose measured share of the dense one's time meets a target.

    Units can't be split, so a model is also close enough if it takes no longer than the target and
    the next larger one does. A warning names the measured share where no model is close.

    Args:
        target: the share of the dense model's time.
        solve: from a predicted share to the units that fit into it.
        predict: the predicted share of some units.
        measure: the measured share of some units, from a number of timings.

    Raises:
        CircuitError: `solve` finds no units for the target itself.
    """
    timed, sure = dict[Units, float](), set[Units]()  # sure: timed often enough to be chosen
    units, timings = solve(target), FEW
    with progress("timing", ROUNDS + 1) as advance:
        while True:
            timed[units] = measure(units, timings)
            if timings == TIMINGS:
                sure.add(units)
            advance(f"predicted {predict(units):z.3f}, measured {timed[units]:z.3f}")
            best = _best(target, timed, predict)
            more = _next(target, units, timed, solve, predict)
            if more is not None and len(timed) < ROUNDS:
                units, timings = more, FEW
            elif best not in sure:
                units, timings = best, TIMINGS
            else:
                break
    if timed[best] > target * (1 + CLOSE) or more is not None:
        warn(
            f"target_latency={target:zg} is not met within {CLOSE:z.0%}: the closest model has "
            f"{predict(best):z.3f} of the dense model's time by prediction, and {timed[best]:z.3f} "
            "by measurement. The machine may be busy; measure again on a quiet one."
        )
    return best


def _meets(target: float, found: float) -> bool:
    return found <= target * (1 + CLOSE)


def _best(target: float, timed: Mapping[Units, float], predict: Callable[[Units], float]) -> Units:
    """The largest model that meets the target, or else the fastest one."""
    within = [units for units, found in timed.items() if _meets(target, found)]
    return max(within, key=predict) if within else min(timed, key=timed.__getitem__)


def _next(
    target: float,
    last: Units,
    timed: Mapping[Units, float],
    solve: Callable[[float], Units],
    predict: Callable[[Units], float],
) -> Units | None:
    """The model to time next; None where the best one is close, or there is none left.

    Its size is between that of the largest one that meets the target and that of the smallest
    larger one that doesn't.
    """
    best = _best(target, timed, predict)
    if abs(timed[best] / target - 1) <= CLOSE:
        return None
    low = predict(best) if _meets(target, timed[best]) else 0.0
    above = [predict(units) for units, found in timed.items() if not _meets(target, found)]
    high = min((price for price in above if price > low), default=math.inf)
    corrected_share = target * predict(last) / timed[last]
    for share in (corrected_share, *_between(low, high)):
        try:
            units = solve(share)
        except CircuitError:  # no unit fits into it
            continue
        if units not in timed and low < predict(units) < high:
            return units
    return None


def _between(low: float, high: float) -> Iterator[float]:
    """Shares between two, the middle first; growing steps from the first if there is no second."""
    if high < math.inf:
        yield from ((low + high) / 2, high * (1 - 1e-9))
    else:
        yield from (low * (1 + CLOSE) ** 2**doubling for doubling in range(DOUBLINGS))


@in_default_modes
def measured_share(vit: ViT, shape: ViTConfig, batch: int, timings: int) -> float:
    """The time of a model of some shape as a share of the dense one's.

    Both are timed in turn, and the median of the quotients is returned. The weights don't change
    the time, so they are random.

    Args:
        vit: the dense model.
        shape: of the other one.
        batch: images a batch.
        timings: how often each is timed.
    """
    if shape == vit.config:
        return 1.0
    config = vit.config
    small = ViT(shape, seed=0).to(vit.positions)
    generator = torch.Generator().manual_seed(0)
    size = (batch, config.channels, config.image_size, config.image_size)
    images = torch.randn(size, generator=generator).to(vit.positions)
    with evaluating(vit, small):
        calls = {"dense": partial(vit, images), "small": partial(small, images)}
        seconds = interleaved(calls, timings)
    return float(np.median(seconds["small"] / seconds["dense"]))
