"""Recommends which model to deploy, within limits and with reasons, or says that figures tie."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from circuitvit.checks import real
from circuitvit.errors import CircuitError, in_short
from circuitvit.escaping import markdown_text
from circuitvit.measure.models.comparison import ComparedModels


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
    """The limits of a candidate; None is no limit.

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

    def excess(self, found: ComparedModels, name: str) -> Mapping[str, float]:
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


def candidates(found: ComparedModels, limits: Limits) -> list[str]:
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


def misses(found: ComparedModels, name: str, limits: Limits) -> str:
    """The limits that a model misses, and by how much."""
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


def doubts(found: ComparedModels, name: str, limits: Limits) -> list[str]:
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


GIVE = 0.02
"""How much top-1 the balanced choice may lose against the most accurate model."""

MISCALIBRATED = 0.05
"""From this calibration error on, confidences should not be read as probabilities."""

SAME_IMAGES = (
    "This was chosen and scored on the same images, which flatters the choice: choose on "
    "validation images and report the chosen model's figures on others."
)


@dataclass(frozen=True)
class Recommendation:
    """One model for one aim.

    Attributes:
        aim: what comes first.
        model: the one to take; never dominated.
        reasons: sentences.
    """

    aim: str
    model: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """The recommended models; chosen and scored on the same images, which flatters them.

    Attributes:
        recommendations: for accuracy first, balanced and latency first.
        left_out: sentences about the models that another dominates, or that miss a limit.
        limits: which limits were asked for, in words; empty without any.
    """

    recommendations: tuple[Recommendation, ...]
    left_out: tuple[str, ...]
    limits: str = ""

    def __getitem__(self, aim: str) -> Recommendation:
        return next(one for one in self.recommendations if one.aim == aim)

    def lines(self) -> list[str]:
        """The advice as a Markdown list."""
        told = [
            f"- **{one.aim}: {markdown_text(one.model)}.** {markdown_text(' '.join(one.reasons))}"
            for one in self.recommendations
        ]  # fmt: skip
        return [*told, *(f"- {markdown_text(text)}" for text in self._notes())]

    def __str__(self) -> str:
        told = [
            f"- {one.aim}: {one.model}. {' '.join(one.reasons)}" for one in self.recommendations
        ]
        return "\n".join([*told, *(f"- {text}" for text in self._notes())])

    def _notes(self) -> list[str]:
        asked = [f"Asked for: {self.limits}."] if self.limits else []
        return [*asked, *self.left_out, SAME_IMAGES]


def advise(found: ComparedModels, *, give: float, limits: Limits) -> Advice:
    """The model for each aim among those within the limits that none of these dominates.

    Accuracy first is the highest top-1, or one that costs less, loses at most `give` of it and is
    not told apart from it. Balanced is the lowest cost among those that lose at most `give`; of
    models not told apart in cost from the lowest, the most accurate. Latency first is the lowest
    cost; only where that is not accurate enough (`min_accuracy`, or without it `give` less than the
    most accurate of those not told apart from it in cost) is it the most accurate of these.

    Raises:
        CircuitError: `give` is not in 0–1, or no model is within the limits.
    """
    if not is_between(give, -1e-300, 1):
        raise CircuitError(
            f"give is {in_short(give)}, expected a share of top-1 in 0–1, such as 0.02 for 2 "
            "points."
        )
    pool = candidates(found, limits)
    front = sorted((n for n in pool if not {*found.dominators(n)} & {*pool}), key=found.cost)
    best = max(front, key=found.top1)
    near = [name for name in front if found.top1(name) >= found.top1(best) - give]
    tied = [name for name in near if found.difference(best, name).low <= 0 or name == best]
    accurate, balanced = (_quick(found, among) for among in (tied, near))
    fast, alike = front[0], _quick(found, front)
    enough = found.top1(alike) - give if limits.min_accuracy is None else limits.min_accuracy
    fast = fast if found.top1(fast) >= enough else alike
    chosen = (
        ("Accuracy first", accurate, _why_accurate(found, accurate, best, pool, give)),
        ("Balanced", balanced, _why_balanced(found, balanced, best, near, give)),
        (
            "Latency first" if found.batch is not None else "GFLOPs first",
            fast,
            _why_fast(found, fast, front[0], best, alike),
        ),
    )

    def recommended(aim: str, name: str, why: list[str]) -> Recommendation:
        reasons = [*why, *doubts(found, name, limits), *_warnings(found, name)]
        return Recommendation(aim, name, tuple(reasons))

    return Advice(
        tuple(recommended(*each) for each in chosen),
        _left_out(found, pool, front, limits),
        limits.told(found.batch),
    )


def _quick(found: ComparedModels, among: Sequence[str]) -> str:
    """The most accurate of those not told apart in speed from the quickest of these."""
    quickest = min(among, key=found.cost)
    return max((n for n in among if not found.is_faster(quickest, n)), key=found.top1)


def _why_accurate(
    found: ComparedModels, name: str, best: str, pool: Sequence[str], give: float
) -> list[str]:
    lead = f"Top-1 {_shares(found, name)}"
    others = [other for other in pool if other != best]
    if not others:
        only = "model" if len(found.names) == 1 else "one within the limits"
        return [f"{lead}; it is the only {only}, so there is nothing to choose from."]
    if name != best:
        return [
            f"{lead}. {best} has the highest, {found.top1(best):z.1%}, but {name} is not told "
            f"apart from it in top-1: {_gap(found, best, name)}; and it takes "
            f"{_times(found, name, best)}."
        ]
    why = [f"{lead}, the highest of {len(pool)} on these images."]
    alike = [other for other in others if found.difference(best, other).low <= 0]
    if not alike:
        return [*why, "Every other model is behind by more than chance explains (95%)."]
    closest = max(alike, key=lambda other: (not found.dominators(other), found.top1(other)))
    rest = f", and the same goes for {len(alike) - 1} more" if len(alike) > 1 else ""
    return [
        *why,
        f"{closest} is not told apart from it in top-1: {_gap(found, best, closest)}{rest}; none "
        f"of them within {_points(give)} is shown to cost less.",
    ]


def _why_balanced(
    found: ComparedModels, name: str, best: str, near: Sequence[str], give: float
) -> list[str]:
    if near[0] == best:
        return [f"No model that costs less stays within {_points(give)} of its top-1."]
    tie = _tie(found, name, near[0])
    if name == best:
        return [f"No model within {_points(give)} of its top-1 is shown to cost less.", *tie]
    gap = found.difference(best, name)
    lead = "Among the fastest" if tie else f"The {_least(found)}"
    return [
        f"{lead} within {_points(give)} of {best}: it takes "
        f"{_times(found, name, best)} and gives up {_points(gap.value)} of top-1 "
        f"({_points(gap.low, unit=False)} to {_points(gap.high)})."
        + (" That difference may be chance." if gap.low <= 0 else ""),
        *tie,
    ]


def _why_fast(found: ComparedModels, name: str, quickest: str, best: str, alike: str) -> list[str]:
    if found.batch is None:
        why = [f"{found.gflops(name):z.4g} GFLOPs an image, the least; no time was measured."]
    else:
        lead = "the lowest latency" if name == quickest else "among the lowest latencies"
        why = [
            f"{found.cost(name):z.3g} ms for a batch of {found.batch}, "
            f"{found.images_per_second(name):z,.0f} images/s, {lead}."
        ]
    why += _tie(found, name, quickest)
    if name != best:
        gap = found.top1(best) - found.top1(name)
        why.append(
            f"Against {best} it takes {_times(found, name, best)} and loses {_points(gap)} of "
            "top-1."
        )
    if alike not in (name, best):
        why.append(
            f"{alike} is not told apart from it in speed and has "
            f"{_points(found.top1(alike) - found.top1(name))} more of top-1."
        )
    return why


def _tie(found: ComparedModels, name: str, quickest: str) -> list[str]:
    """Why not the quickest, if it is another."""
    if name == quickest:
        return []
    how = "their 95% intervals overlap"
    if found.has_rounds:
        ratio = found.ratio(quickest, name)
        how = f"{ratio.low:z.0%} to {ratio.high:z.0%} of its time, 95%, paired over rounds"
    return [
        f"{quickest} took {found.cost(quickest):z.3g} ms against {found.cost(name):z.3g}, but is "
        f"not told apart in speed ({how}), and has "
        f"{_points(found.top1(name) - found.top1(quickest))} less of top-1."
    ]


def _gap(found: ComparedModels, name: str, other: str) -> str:
    gap = found.difference(name, other)
    return (
        f"{_points(gap.value)} of difference, {_points(gap.low, unit=False)} to "
        f"{_points(gap.high)} (95%, paired over images)"
    )


def _warnings(found: ComparedModels, name: str) -> list[str]:
    """What to know before it is deployed: calibration, and whether it does anything at all."""
    one, said = found[name], []
    most = max(one.support) / sum(one.support)
    if one.interval.low <= most < 1:
        said.append(
            f"It is not shown to beat always answering the most frequent class ({most:z.1%}): "
            "don't deploy it without training."
        )
    error = f"calibration error {one.calibration_error:z.3f}"
    if one.calibration_error < MISCALIBRATED:
        return [*said, f"Its confidences can be read as probabilities ({error})."]
    off = one.confidence - one.accuracy.top1
    way = f"{'over' if off > 0 else 'under'}-confident"
    if abs(off) < one.calibration_error / 2:
        way = "over-confident for some images and under-confident for others"
    return [
        *said,
        f"It is {way}: {one.confidence:z.1%} sure on average, {one.accuracy.top1:z.1%} right "
        f"({error}); calibrate it on validation images, by a temperature for instance, before "
        "thresholding its confidence.",
    ]


def _left_out(
    found: ComparedModels, pool: Sequence[str], front: Sequence[str], limits: Limits
) -> tuple[str, ...]:
    unit = "latency" if found.batch is not None else "GFLOPs"
    said = []
    for name in found.names:
        over = {*found.dominators(name)}
        ahead = [other for other in front if other in over]
        if name not in pool:
            said.append(f"{name} is left out: {misses(found, name, limits)}.")
        elif name not in front:
            said.append(
                f"{name} is left out: {ahead[0]} is at least as good in both top-1 and {unit}, "
                f"and better in one: {_gap(found, ahead[0], name)}; "
                f"{_times(found, ahead[0], name)}."
            )
    return tuple(said)


def _least(found: ComparedModels) -> str:
    return "fastest" if found.batch is not None else "model of fewest GFLOPs"


def _times(found: ComparedModels, name: str, other: str) -> str:
    if found.has_rounds:
        ratio = found.ratio(name, other)
        return f"{ratio.value:z.0%} of its time ({ratio.low:z.0%} to {ratio.high:z.0%})"
    share = found.cost(name) / found.cost(other) if found.cost(other) else 1.0
    return f"{share:z.0%} of its {'time' if found.batch is not None else 'GFLOPs'}"


def _shares(found: ComparedModels, name: str) -> str:
    one = found[name].interval
    return f"{one.value:z.1%} ({one.low:z.1%} to {one.high:z.1%})"


def _points(share: float, *, unit: bool = True) -> str:
    number = f"{round(100 * share, 1):z.3g}".replace("-", "−")
    return f"{number} points" if unit else number
