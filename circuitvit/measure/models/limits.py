"""Limits that a model has to keep to be deployed, and which models keep them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from circuitvit.checks import real
from circuitvit.errors import CircuitError, in_short

if TYPE_CHECKING:
    from circuitvit.measure.models.evaluation import Evaluation


class NoneWithinError(CircuitError):
    """No model is within the limits."""


def is_between(value: Any, above: float | int, most: float | int) -> bool:
    """Whether a value is a finite number above one and at most another."""
    if isinstance(value, bool):
        return False
    try:
        return above < real(value, "it") <= most and math.isfinite(value)
    except CircuitError:
        return False


@dataclass(frozen=True)
class Limits:
    """What a model has to keep to be a candidate; None is no limit.

    Attributes:
        max_latency: milliseconds for a batch of the evaluation's `batch`, > 0.
        min_accuracy: top-1, 0–1.
        max_parameters: ≥ 1.

    Raises:
        CircuitError: a limit is out of range; every one is named.
    """

    max_latency: float | int | None = None
    min_accuracy: float | int | None = None
    max_parameters: float | int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "max_latency": (0, math.inf, "milliseconds > 0, such as 5.0"),
            "min_accuracy": (-1e-300, 1, "a share of top-1 in 0–1, such as 0.9"),
            "max_parameters": (1 - 1e-9, math.inf, "a number of parameters ≥ 1"),
        }
        wrong = []
        for name, (above, most, expected) in ranges.items():
            value = getattr(self, name)
            if value is not None and not is_between(value, above, most):
                wrong.append(f"{name} is {in_short(value)}, expected {expected}")
        if wrong:
            raise CircuitError("; ".join(wrong) + ".")

    def excess(self, found: "Evaluation", name: str) -> Mapping[str, float]:
        """By how much a model misses each limit that is given, as a share of it; ≤ 0 is within."""
        missed: dict[str, float] = {}
        if self.max_latency is not None:
            missed["max_latency"] = found.cost(name) / self.max_latency - 1
        if self.min_accuracy is not None:
            missed["min_accuracy"] = (self.min_accuracy - found.top1(name)) / (
                self.min_accuracy or 1
            )
        if self.max_parameters is not None:
            missed["max_parameters"] = found.report[name].parameters / self.max_parameters - 1
        return missed

    def told(self, batch: int | None) -> str:
        """The limits in words."""
        parts = []
        if self.max_latency is not None:
            parts.append(f"at most {self.max_latency:z.4g} ms for a batch of {batch}")
        if self.min_accuracy is not None:
            parts.append(f"top-1 of at least {self.min_accuracy:z.1%}")
        if self.max_parameters is not None:
            parts.append(f"at most {self.max_parameters:z,.0f} parameters")
        return ", ".join(parts)


def limits_of(given: Mapping[str, Any]) -> Limits:
    """The limits that were given by name.

    Raises:
        CircuitError: there is none of such a name, or one is out of range.
    """
    known = [field.name for field in fields(Limits)]
    if unknown := sorted(given.keys() - {*known}):
        raise CircuitError(f"there is no limit {', '.join(unknown)}, only {', '.join(known)}.")
    return Limits(**given)


def candidates(found: "Evaluation", limits: Limits) -> list[str]:
    """The models that keep all limits, in the order given.

    Raises:
        NoneWithinError: there is none.
        CircuitError: a latency is asked for and nothing was timed.
    """
    if limits.max_latency is not None and found.batch is None:
        raise CircuitError(
            "max_latency is given, but nothing was timed. Evaluate with batches=(…), such as "
            "batches=(1,) for single images."
        )
    worst = {name: max([0.0, *limits.excess(found, name).values()]) for name in found.names}
    pool = [name for name, excess in worst.items() if excess <= 0]
    if pool:
        return pool
    nearest = min(found.names, key=lambda name: worst[name])
    most = max(found.names, key=found.top1)
    small = min(found.names, key=lambda name: found.report[name].parameters)
    bests = [
        f"the most accurate is {most} ({found.top1(most):z.1%})",
        f"the smallest {small} ({found.report[small].parameters:,} parameters)",
    ]
    if found.batch is not None:
        quick = min(found.names, key=found.cost)
        bests.append(f"the fastest {quick} ({found.cost(quick):z.3g} ms)")
    raise NoneWithinError(
        f"none of {len(found.names)} models keeps what was asked for ({limits.told(found.batch)}). "
        f"The nearest is {nearest}: {misses(found, nearest, limits)}. Of all, "
        f"{', '.join(bests)}. Loosen a limit, or evaluate other models."
    )


def misses(found: "Evaluation", name: str, limits: Limits) -> str:
    """Which limits a model misses, and by how much."""
    shown = {
        "max_latency": lambda: (
            f"{found.cost(name):z.4g} ms, max_latency is {limits.max_latency:z.4g}"
        ),
        "min_accuracy": lambda: (
            f"top-1 {found.top1(name):z.2%}, min_accuracy is {limits.min_accuracy:z.2%}"
        ),
        "max_parameters": lambda: (
            f"{found.report[name].parameters:,} parameters, max_parameters is "
            f"{limits.max_parameters:z,.0f}"
        ),
    }
    missed = limits.excess(found, name).items()
    return "; ".join(shown[limit]() for limit, excess in missed if excess > 0)


def doubts(found: "Evaluation", name: str, limits: Limits) -> list[str]:
    """Limits that a model keeps by its figures, but not by their whole 95% intervals."""
    said, top1 = [], found[name].interval
    if limits.min_accuracy is not None and top1.low < limits.min_accuracy:
        said.append(
            f"Its 95% interval of top-1 ({top1.low:z.1%} to {top1.high:z.1%}) reaches below "
            f"min_accuracy ({limits.min_accuracy:z.1%}): more images would tell."
        )
    if limits.max_latency is not None and name != found.report.baseline:
        ratio = found.ratio(name)
        high = found.cost(name) * ratio.high / ratio.value
        if high > limits.max_latency:
            said.append(
                f"Its 95% interval of time reaches to {high:z.3g} ms, above max_latency "
                f"({limits.max_latency:z.3g} ms): more rounds would tell."
            )
    return said
