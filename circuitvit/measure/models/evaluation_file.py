"""An evaluation as plain JSON values, and made of them again."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from circuitvit.errors import CircuitError, printable, warn
from circuitvit.files.records import EVALUATION
from circuitvit.files.restoring import UnfitError, naming, restored, warn_of_surplus
from circuitvit.measure.models.accuracy import Accuracy
from circuitvit.measure.models.advice import Advice
from circuitvit.measure.models.classification import Classification
from circuitvit.measure.models.latency import NULL, Latency
from circuitvit.measure.models.limits import Limits, NoneWithinError
from circuitvit.measure.models.report import Report, Row

if TYPE_CHECKING:
    from circuitvit.measure.models.evaluation import Evaluation

FIGURES = tuple(f.name for f in fields(Classification) if f.name not in ("accuracy", "right"))
"""What a row says beside the report's."""

LIMITS = "limits"
"""Of the advice, where such were asked for."""

MOST_ROUNDS = 10_000
"""In a file: the intervals of pairs draw 2,000 samples of so many."""

FOLLOWING = (
    "confidence_gap", "milliseconds", "images_per_second", "gflops", "efficiency", "dominated_by",
)  # fmt: skip
"""What follows from the rest of a row, and of the others."""


def plain_evaluation(
    found: "Evaluation", *, single_images: bool, limits: Limits | None = None
) -> dict[str, Any]:
    """The evaluation with what follows from it.

    Args:
        found: the evaluation.
        single_images: whether each row says which images its model gets right, as `right`, a text
            with 1 or 0 for each.
        limits: what the advice has to keep; where no model does, it recommends none.
    """
    body = asdict(found.report)
    rows = [row | _figures(found, row["name"]) for row in body["rows"]]
    for row in rows if single_images else ():
        row["right"] = "".join("01"[int(right)] for right in found[row["name"]].right)
    given = {name: most for name, most in asdict(limits or Limits()).items() if most is not None}
    return EVALUATION.marked({
        **body,
        **({LIMITS: given} if given else {}),
        "rows": rows,
        "batch": found.batch,
        "seed": found.seed,
        "class_names": list(found.class_names),
        "pareto": list(found.pareto()),
        "advice": asdict(_advice(found, limits or Limits())),
    })  # fmt: skip


def _advice(found: "Evaluation", limits: Limits) -> Advice:
    try:
        return found.advice(**asdict(limits))
    except NoneWithinError as cause:
        return Advice((), (str(cause),), limits.told(found.batch))


def _figures(found: "Evaluation", name: str) -> dict[str, Any]:
    one = found[name]
    body = {key: getattr(one, key) for key in FIGURES}
    body |= {"interval": asdict(one.interval), "bins": [asdict(item) for item in one.bins]}
    times = {batch: found.milliseconds(name, batch) for batch in found.report.null}
    speeds = {batch: found.images_per_second(name, batch) for batch in found.report.null}
    return body | {
        "confidence_gap": one.gap,
        "milliseconds": times,
        "images_per_second": speeds,
        "gflops": found.gflops(name),
        "efficiency": found.efficiency(name),
        "dominated_by": list(found.dominators(name)),
    }


@dataclass(frozen=True)
class _File:
    """What the file holds that doesn't follow from the rest."""

    rows: tuple[Mapping[str, Any], ...]
    baseline: str
    null: Mapping[int, Latency]
    machine: Mapping[str, str]
    batch: int | None
    seed: int
    class_names: tuple[str, ...]


def read_evaluation(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file holds, and the fields of the evaluation made of it.

    Raises:
        CircuitError: the file is missing, cut short, something else, or doesn't say which images
            are got right.
    """
    (body, check), surplus = EVALUATION.opened(path), list[str]()
    place = EVALUATION.place(path)
    with naming(place, EVALUATION):
        plain = {
            name: value for name, value in body.items() if name not in ("pareto", "advice", LIMITS)
        }
        file = restored(_File, plain, surplus=surplus)
    without = [str(row.get("name")) for row in file.rows if "right" not in row]
    if without:
        raise CircuitError(
            f"{place} doesn't say which images {', '.join(without[:3])} got right (`right` is "
            "missing in its row), so models can't be compared image by image. An older circuitvit "
            "wrote it: evaluate the models again. The tables are in report.md beside it."
        )
    with naming(place, EVALUATION):
        rows = tuple(_rows(file, surplus))
        report = Report(
            tuple(row for row, _ in rows), file.baseline, file.null, file.machine
        )  # fmt: skip
        odd = _check_rounds(report)
        check(surplus)
        warn_of_surplus(place, surplus)
        if odd:
            warn(
                f"{place} tells ratios that are not the medians of its own rounds "
                f"({', '.join(map(printable, odd[:4]))}): it was altered, so its times can't be "
                "trusted. Evaluate the models again."
            )
        return body, {
            "report": report,
            "classified": {row.name: one for row, one in rows},
            "class_names": file.class_names,
            "batch": file.batch,
            "seed": file.seed,
        }


def _check_rounds(report: Report) -> list[str]:
    """Refuse times that can't be paired round by round.

    Returns:
        The ratios that are not the median of the rounds' own, by model and batch.
    """
    odd = []
    for batch, null in report.null.items():
        timed = {row.name: row.latency[batch] for row in report.rows}
        rounds = [one.rounds_ms for one in (*timed.values(), null)]
        if max(map(len, rounds)) > MOST_ROUNDS:
            raise UnfitError(f"rounds_ms of batch {batch} are more than {MOST_ROUNDS:,} times.")
        uneven = len({len(each) for each in rounds}) > 1
        if uneven or any(ms <= 0 for each in rounds for ms in each):
            raise UnfitError(
                f"rounds_ms of batch {batch} are not as many times above 0 for each model."
            )
        base = timed[report.baseline].rounds_ms
        with np.errstate(over="ignore"):
            odd += [
                f"{name} at batch {batch}"
                for name, one in (*timed.items(), (NULL, null))
                if one.rounds_ms and not _follows(one.ratio, one.rounds_ms, base)
            ]
    return odd


def _follows(ratio: float, mine: Sequence[float], base: Sequence[float]) -> bool:
    """Whether a ratio is the median over rounds, but for rounding."""
    return math.isclose(ratio, float(np.median(np.divide(mine, base))), rel_tol=1e-6)


def _rows(file: _File, surplus: list[str]) -> Iterator[tuple[Row, Classification]]:
    own = {field.name for field in fields(Row)}
    for number, row in enumerate(file.rows):
        where = f"rows[{number}]"
        told = restored(Row, {key: row[key] for key in own & set(row)}, where=where)
        body = {key: row[key] for key in ("accuracy", *FIGURES) if key in row}
        body["right"] = _right(row["right"], told.accuracy, f"{where}.right")
        known = {*own, *body, *FOLLOWING}
        surplus += [f"{where}.{name}" for name in row if name not in known]
        yield told, restored(Classification, body, where=where)


def _right(text: object, told: Accuracy, where: str) -> Bool[np.ndarray, " image"]:
    if not isinstance(text, str) or len(text) != told.images or set(text) - {"0", "1"}:
        raise UnfitError(
            f"{where} is {str(text)[:20]!r}…, expected 0 or 1 for each of {told.images} images."
        )
    if text.count("1") != round(told.top1 * told.images):
        raise UnfitError(f"{where} has {text.count('1')} right images, not a share of {told.top1}.")
    return np.array([letter == "1" for letter in text], dtype=bool)
