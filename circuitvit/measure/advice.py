"""Which model to deploy, in words with reasons; says where the figures don't decide."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitvit.errors import CircuitError

if TYPE_CHECKING:
    from circuitvit.measure.evaluation import Evaluation

GIVE = 0.02
"""How much top-1 the balanced choice may lose against the most accurate model."""

MISCALIBRATED = 0.05
"""From this calibration error on, confidences should not be read as probabilities."""


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
    """What to deploy.

    Attributes:
        recommendations: for accuracy first, balanced and latency first.
        left_out: sentences about the models that another dominates.
    """

    recommendations: tuple[Recommendation, ...]
    left_out: tuple[str, ...]

    def __getitem__(self, aim: str) -> Recommendation:
        return next(one for one in self.recommendations if one.aim == aim)

    def lines(self) -> list[str]:
        """The advice as a Markdown list."""
        told = [
            f"- **{one.aim}: {one.model}.** {' '.join(one.reasons)}"
            for one in self.recommendations
        ]  # fmt: skip
        return [*told, *(f"- {text}" for text in self.left_out)]

    def __str__(self) -> str:
        return "\n".join(line.replace("**", "") for line in self.lines())


def advise(found: "Evaluation", *, give: float) -> Advice:
    """The model for each aim among those that are not dominated.

    Accuracy first is the highest top-1; latency first the lowest cost; balanced the lowest cost
    among those that lose at most `give` of top-1 against the highest.

    Raises:
        CircuitError: `give` is not in 0–1.
    """
    if not 0 <= give <= 1:
        raise CircuitError(
            f"give is {give}, expected a share of top-1 in 0–1, such as 0.02 for 2 points."
        )
    front = found.pareto()
    best = max(front, key=found.top1)
    near = [name for name in front if found.top1(name) >= found.top1(best) - give]
    chosen = (
        ("Accuracy first", best, _why_accurate(found, best)),
        ("Balanced", near[0], _why_balanced(found, near[0], best, give)),
        (
            "Latency first" if found.batch is not None else "GFLOPs first",
            front[0],
            _why_fast(found, front[0], best),
        ),
    )
    return Advice(
        tuple(
            Recommendation(aim, name, (*why, *_warnings(found, name))) for aim, name, why in chosen
        ),
        _left_out(found),
    )


def _why_accurate(found: "Evaluation", best: str) -> list[str]:
    lead = f"Top-1 {_shares(found, best)}"
    others = [name for name in found.names if name != best]
    if not others:
        return [f"{lead}; it is the only model, so there is nothing to choose from."]
    why = [f"{lead}, the highest of {len(found.names)} on these images."]
    gaps = {name: found.difference(best, name) for name in others}
    alike = [name for name in others if gaps[name].low <= 0]
    if not alike:
        return [*why, "Every other model is behind by more than chance explains (95%)."]
    closest = min(alike, key=lambda name: (bool(found.dominators(name)), gaps[name].value))
    gap, rest = gaps[closest], len(alike) - 1
    why.append(
        f"But {closest} is not told apart from it: {_points(gap.value)} of difference, "
        f"{_points(gap.low, unit=False)} to {_points(gap.high)} (95%, paired over images), so "
        "neither is shown to be better" + (f", and the same goes for {rest} more." if rest else ".")
    )
    front = found.pareto()
    quicker = [name for name in alike if name in front and _is_faster(found, name, best)]
    if quicker:
        name = min(quicker, key=found.cost)
        why.append(f"{name} takes {_times(found, name, best)}: more images would settle it.")
    return why


def _why_balanced(found: "Evaluation", name: str, best: str, give: float) -> list[str]:
    if name == best:
        return [f"No model that costs less stays within {_points(give)} of its top-1."]
    gap = found.difference(best, name)
    return [
        f"The {_least(found)} within {_points(give)} of {best}: it takes "
        f"{_times(found, name, best)} and gives up {_points(gap.value)} of top-1 "
        f"({_points(gap.low, unit=False)} to {_points(gap.high)})."
        + (" That difference may be chance." if gap.low <= 0 else "")
    ]


def _why_fast(found: "Evaluation", fastest: str, best: str) -> list[str]:
    if found.batch is None:
        why = [f"{found.gflops(fastest):.4g} GFLOPs an image, the least; no time was measured."]
    else:
        why = [
            f"{found.cost(fastest):.3g} ms for a batch of {found.batch}, "
            f"{found.images_per_second(fastest):,.0f} images/s, the lowest latency."
        ]
    if fastest != best:
        gap = found.top1(best) - found.top1(fastest)
        why.append(
            f"Against {best} it takes {_times(found, fastest, best)} and loses {_points(gap)} of "
            "top-1."
        )
    alike = [
        name
        for name in found.pareto()
        if name != fastest and found.batch is not None and not _is_faster(found, fastest, name)
    ]
    if alike:
        name = max(alike, key=found.top1)
        why.append(
            f"{name} is not told apart from it in speed (their 95% intervals overlap) and has "
            f"{_points(found.top1(name) - found.top1(fastest))} more of top-1: prefer it unless "
            "size decides."
        )
    return why


def _warnings(found: "Evaluation", name: str) -> list[str]:
    """What to know before it is deployed: calibration, and whether it does anything at all."""
    one, said = found[name], []
    most = max(one.support) / sum(one.support)
    if one.interval.low <= most < 1:
        said.append(
            f"It is not shown to beat always answering the most frequent class ({most:.1%}): "
            "don't deploy it without training."
        )
    error = f"calibration error {one.calibration_error:.3f}"
    if one.calibration_error < MISCALIBRATED:
        return [*said, f"Its confidences can be read as probabilities ({error})."]
    off = one.confidence - one.accuracy.top1
    way = f"{'over' if off > 0 else 'under'}-confident"
    if abs(off) < one.calibration_error / 2:
        way = "over-confident for some images and under-confident for others"
    return [
        *said,
        f"It is {way}: {one.confidence:.1%} sure on average, {one.accuracy.top1:.1%} right "
        f"({error}); calibrate it on validation images, by a temperature for instance, before "
        "thresholding its confidence.",
    ]


def _left_out(found: "Evaluation") -> tuple[str, ...]:
    unit = "latency" if found.batch is not None else "GFLOPs"
    said = []
    for name in found.names:
        over = found.dominators(name)
        if over:
            front = [other for other in found.pareto() if other in over]
            said.append(
                f"{name} is left out: {front[0]} is at least as good in both top-1 and {unit}, "
                "and better in one."
            )
    return tuple(said)


def _is_faster(found: "Evaluation", name: str, other: str) -> bool:
    """Whether the intervals of their time against the baseline's don't even touch."""
    return found.ratio(name).high < found.ratio(other).low


def _least(found: "Evaluation") -> str:
    return "fastest" if found.batch is not None else "model of fewest GFLOPs"


def _times(found: "Evaluation", name: str, other: str) -> str:
    share = found.cost(name) / found.cost(other) if found.cost(other) else 1.0
    return f"{share:.0%} of its {'time' if found.batch is not None else 'GFLOPs'}"


def _shares(found: "Evaluation", name: str) -> str:
    one = found[name].interval
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def _points(share: float, *, unit: bool = True) -> str:
    number = f"{round(100 * share, 1) + 0.0:.3g}".replace("-", "−")
    return f"{number} points" if unit else number
