"""Honest latency: models side by side in one process, as ratios with confidence intervals.

Rounds are interleaved: in each, every model is timed once, in a rotating order, so that a machine
that slows down slows all. The baseline stands in the list twice; the ratio of it to itself (`null`)
shows what the noise alone would claim.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from circuitvit.errors import CircuitError
from circuitvit.measure.bootstrap import KnownEstimate
from circuitvit.measure.models.accuracy import as_computed
from circuitvit.torch_modes import evaluating, in_default_modes

NULL = "null"
LEAST_SECONDS = 0.02
WARM_UPS = 3


@dataclass(frozen=True)
class Latency:
    """The time of one model at one batch size.

    Attributes:
        batch: images at once.
        median_ms: median time of a batch over the rounds, in milliseconds.
        iqr_ms: interquartile range of it.
        first_ms: the first call, in milliseconds, not counted elsewhere.
        ratio: median over rounds of this model's time ÷ the baseline's in the same round.
        ratio_low: lower end of its 95% bootstrap confidence interval.
        ratio_high: upper end.
        peak_bytes: peak memory during a batch, on CUDA; None elsewhere.
        rounds_ms: the time of a batch in each round, in milliseconds; models that were timed
            together have the same rounds, so any two can be paired. Empty in older files.
    """

    batch: int
    median_ms: float
    iqr_ms: float
    first_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_bytes: int | None
    rounds_ms: tuple[float, ...] = ()

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"rounds_ms"})


@in_default_modes
def latency(
    models: Mapping[str, nn.Module],
    images: Float[Tensor, "image channel height width"],
    *,
    baseline: str,
    batch: int,
    rounds: int = 15,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time models against a baseline on one batch of images.

    Args:
        models: by name; put into eval mode for the timing, then back.
        images: at least one; repeated to fill the batch, and resident before the clock starts.
        baseline: the name that ratios refer to.
        batch: images at once.
        rounds: how often each is timed, ≥ 3.
        seed: draws the bootstrap samples.

    Returns:
        By name, and under `null` the baseline against itself.

    Raises:
        CircuitError: the baseline is not among the models, or a number is too small.
    """
    if baseline not in models or NULL in models or rounds < 3 or batch < 1 or not len(images):
        raise CircuitError(
            f"expected ≥ 1 image, batch ≥ 1, rounds ≥ 3 and a baseline among {sorted(models)} "
            f"(none called {NULL!r}); got {len(images)}, {batch}, {rounds} and {baseline!r}."
        )
    inputs = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].contiguous()
    everyone = {**models, NULL: models[baseline]}
    own = {name: as_computed(inputs, model) for name, model in everyone.items()}
    with evaluating(*models.values()):
        first = {name: _first_call(model, own[name]) for name, model in everyone.items()}
        calls = {name: partial(model, own[name]) for name, model in everyone.items()}
        seconds = interleaved(calls, rounds)
        peaks = {name: _peak_bytes(model, own[name]) for name, model in everyone.items()}
    return {
        name: _summary(seconds[name], seconds[baseline], batch, first[name], peaks[name], seed)
        for name in everyone
    }


def _first_call(model: nn.Module, inputs: Tensor) -> float:
    _synchronise(inputs)
    start = time.perf_counter()
    with torch.inference_mode():
        model(inputs)
        _synchronise(inputs)
        taken = time.perf_counter() - start
        for _ in range(WARM_UPS):
            model(inputs)
    return 1e3 * taken


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Float[np.ndarray, " round"]]:
    """Seconds that each call takes in inference mode: once a round, in a rotating order.

    A call is repeated until `LEAST_SECONDS` have passed and its mean taken; CUDA is synchronised.
    """
    timers = {
        name: Timer(
            "with inference_mode(): call()",
            globals={"call": call, "inference_mode": torch.inference_mode},
            num_threads=torch.get_num_threads(),
        )
        for name, call in calls.items()
    }
    repeats = {name: _repeats(timer) for name, timer in timers.items()}
    names = list(calls)
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name][index] = timers[name].timeit(repeats[name]).mean
    return seconds


def _repeats(timer: Timer) -> int:
    """How many calls take `LEAST_SECONDS`; of three tries the quickest, as one may be disturbed."""
    once = min(timer.timeit(1).mean for _ in range(3))
    return max(1, round(LEAST_SECONDS / once))


def _peak_bytes(model: nn.Module, inputs: Tensor) -> int | None:
    if inputs.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(inputs.device)
    with torch.inference_mode():
        model(inputs)
    return torch.cuda.max_memory_allocated(inputs.device)


def _summary(
    mine: Float[np.ndarray, " round"],
    baseline: Float[np.ndarray, " round"],
    batch: int,
    first_ms: float,
    peak_bytes: int | None,
    seed: int,
) -> Latency:
    against = paired_ratio(mine.tolist(), baseline.tolist(), seed=seed)
    quarters = np.percentile(mine, [25, 75])
    return Latency(
        batch=batch,
        median_ms=1e3 * float(np.median(mine)),
        iqr_ms=1e3 * float(quarters[1] - quarters[0]),
        first_ms=first_ms,
        ratio=against.value,
        ratio_low=against.low,
        ratio_high=against.high,
        peak_bytes=peak_bytes,
        rounds_ms=tuple((1e3 * mine).tolist()),
    )


def paired_ratio(mine: Sequence[float], theirs: Sequence[float], *, seed: int) -> KnownEstimate:
    """The median of one model's time ÷ another's over the rounds that both were timed in.

    Args:
        mine: the time in each round.
        theirs: the other's, of the same rounds.
        seed: draws the bootstrap samples of its 95% interval.
    """
    ratios = np.asarray(mine, dtype=float) / np.asarray(theirs, dtype=float)
    return KnownEstimate(float(np.median(ratios)), *bootstrap_interval(ratios, seed=seed))


def bootstrap_interval(
    values: Float[np.ndarray, " sample"], *, seed: int, samples: int = 2000
) -> tuple[float, float]:
    """The 95% bootstrap confidence interval of a median."""
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _synchronise(inputs: Tensor) -> None:
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)


def machine_of(device: torch.device) -> dict[str, str]:
    """What a figure that was measured on this device should say beside it."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # a class of its own, of which a file keeps the text
        "circuitvit": version("circuitvit"),
    }
