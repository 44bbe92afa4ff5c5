"""Pass: a budget of latency held against the clock.

A table of costs knows each part alone, and parts next to one another take another time. So the
model that the table picks is timed beside the dense one, and the budget solved again with the
quotient of both.
"""

from collections.abc import Callable

import torch

from circuitvit.config import ViTConfig
from circuitvit.controls import Units
from circuitvit.errors import CircuitError, warn
from circuitvit.measure.latency import latency
from circuitvit.progress import progress
from circuitvit.vit import ViT

CLOSE = 0.02
"""How far the measured share may lie from the target, as a share of this."""
ROUNDS = 4
"""So many models are timed at most."""
TIMINGS = 7
"""How often each of them is, beside the dense model."""


def corrected(
    target: float,
    solve: Callable[[float], Units],
    predict: Callable[[Units], float],
    measure: Callable[[Units], float],
) -> Units:
    """The units whose measured share of the dense model's time is close to a target.

    Units come whole, so a model counts as close, too, if it takes no longer than the target and the
    one with a unit more would. A warning says what was measured where none is.

    Args:
        target: the share that is asked for.
        solve: the units that a predicted share pays for.
        predict: the predicted share of some units.
        measure: the measured one.

    Raises:
        CircuitError: `solve` finds none for the target itself.
    """
    timed: dict[Units, float] = {}
    share, settled = target, False
    with progress("timing", ROUNDS) as advance:
        while len(timed) < ROUNDS and not settled:
            try:
                kept = solve(share)
            except CircuitError:
                if not timed:
                    raise
                break
            if kept in timed:
                settled = True
                continue
            timed[kept] = measure(kept)
            advance(f"predicted {predict(kept):z.3f}, measured {timed[kept]:z.3f}")
            settled = abs(timed[kept] / target - 1) <= CLOSE
            share = target * predict(kept) / timed[kept]
    within = {units: found for units, found in timed.items() if found <= target * (1 + CLOSE)}
    best = max(within, key=within.__getitem__) if within else min(timed, key=timed.__getitem__)
    if not (settled and within):
        warn(
            f"target_latency={target:zg} is not met within {CLOSE:z.0%}: the model that comes "
            f"nearest was predicted {predict(best):z.3f} of the dense model's time, and measured "
            f"{timed[best]:z.3f}. The machine may be busy; measure again on a quiet one."
        )
    return best


def measured_share(vit: ViT, shape: ViTConfig, batch: int) -> float:
    """The time of a model of some shape as a share of the dense one's, both timed in turn.

    What weights it has doesn't matter, so they are drawn.
    """
    if shape == vit.config:
        return 1.0
    config = vit.config
    small = ViT(shape, seed=0).to(vit.positions)
    generator = torch.Generator().manual_seed(0)
    size = (1, config.channels, config.image_size, config.image_size)
    images = torch.randn(size, generator=generator).to(vit.positions)
    models = {"dense": vit, "small": small}
    timed = latency(models, images, baseline="dense", batch=batch, rounds=TIMINGS)
    return timed["small"].ratio
