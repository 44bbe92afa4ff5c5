"""Writes an evaluation as JSON values, tables and Markdown, and reads it again."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitvit.charts.tables import markdown_table
from circuitvit.errors import CircuitError, printable, warn
from circuitvit.escaping import markdown_code, markdown_text
from circuitvit.files.records import EVALUATION
from circuitvit.files.restoring import UnfitError, naming, restored, warn_of_surplus
from circuitvit.measure.models.accuracy import Accuracy, Classification
from circuitvit.measure.models.advice import GIVE, Advice, Limits, NoneWithinError, advise
from circuitvit.measure.models.comparison import ComparedModels
from circuitvit.measure.models.latency import NULL, Latency
from circuitvit.measure.models.report import Report, Row, changed, ratio_text

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
    found: ComparedModels, *, single_images: bool, limits: Limits | None = None
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


def _advice(found: ComparedModels, limits: Limits) -> Advice:
    try:
        return advise(found, give=GIVE, limits=limits)
    except NoneWithinError as cause:
        return Advice((), (str(cause),), limits.told(found.batch))


def _figures(found: ComparedModels, name: str) -> dict[str, Any]:
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


ALL_CLASSES = 30
"""With more classes than these the report names only the hardest."""
HARDEST = 15

DEFINITIONS = """\
Precision, recall and F1 are means over the classes that have images. Confidence is the highest
probability, gap how much higher it is when right than when wrong; entropy is in nats. Calibration
error is the expected one over 15 bins (Guo et al. 2017). GFLOPs are 2 × MACs. Intervals are 95%,
those of top-1 over images, those of latency over rounds."""


def cells(found: ComparedModels) -> list[list[str]]:
    """Header and rows of the short table, as text."""
    report = found.report
    batches, base = sorted(report.null), report[report.baseline]
    header = ["model", "top-1", "macro F1", "loss", "ECE", "params", "MACs"]
    rows = [[*header, *(f"latency, batch {batch}" for batch in batches), "Pareto"]]
    front = set(found.pareto())
    for row in report.rows:
        one, own = found[row.name], row.name == report.baseline
        interval = f"{one.interval.low:z.1%}–{one.interval.high:z.1%}"
        times = ["1" if own else ratio_text(row.latency[batch]) for batch in batches]
        rows.append([
            row.name, f"{row.accuracy.top1:z.2%} ({interval})", f"{one.f1:z.3f}",
            f"{row.accuracy.loss:z.3f}", f"{one.calibration_error:z.3f}",
            changed(row.parameters, base.parameters), changed(row.macs, base.macs),
            *times, "yes" if row.name in front else "no",
        ])  # fmt: skip
    if batches:
        nulls = [ratio_text(report.null[batch]) for batch in batches]
        rows.append([f"{report.baseline} against itself", *[""] * 6, *nulls, ""])
    return rows


def evaluation_markdown(found: ComparedModels, limits: Limits) -> str:
    """The whole report; where no model is within the limits, its advice says so."""
    report = found.report
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    images = report.rows[0].accuracy.images
    timed = f"latency at a batch of {found.batch}" if found.batch is not None else "GFLOPs"
    base = markdown_code(report.baseline)
    parts = [
        "# Evaluation",
        f"{images:,} images, {len(found.class_names)} classes; baseline {base}; "
        f"{markdown_text(machine)}.",
        "## Advice",
        _advice_text(found, limits),
        f"Pareto set (top-1 against {timed}; no other model is at least as good in both and "
        f"better in one), the quickest first: {', '.join(map(markdown_text, found.pareto()))}.",
        "## Classification",
        markdown_table(_classification(found)),
        "## Cost",
        markdown_table(_cost(found)),
        f"Shares of {base}'s time were measured side by side in one process, round by "
        "round; ms are its median × the share.",
        "## By class",
        *_by_class(found),
        "## What the figures mean",
        DEFINITIONS,
    ]
    return "\n\n".join(parts) + "\n"


def _advice_text(found: ComparedModels, limits: Limits) -> str:
    try:
        return "\n".join(advise(found, give=GIVE, limits=limits).lines())
    except NoneWithinError as cause:
        return f"No model is advised: {markdown_text(str(cause))}"


def _classification(found: ComparedModels) -> list[list[str]]:
    header = ["model", "top-1", "top-5", "precision", "recall", "F1", "loss", "confidence",
              "when right", "when wrong", "gap", "entropy", "calibration error"]  # fmt: skip
    rows = [header]
    for name in found.names:
        one = found[name]
        top1 = f"{one.interval.value:z.2%} ({one.interval.low:z.2%}–{one.interval.high:z.2%})"
        numbers = [one.precision, one.recall, one.f1, one.accuracy.loss, one.confidence]
        numbers += [one.confidence_right, one.confidence_wrong, one.gap, one.entropy]
        numbers.append(one.calibration_error)
        rows.append([name, top1, _share(one.accuracy.top5), *map(_number, numbers)])
    return rows


def _cost(found: ComparedModels) -> list[list[str]]:
    report = found.report
    batches, base = sorted(report.null), report[report.baseline]
    header = ["model", "parameters", "MACs", "GFLOPs"]
    for batch in batches:
        header += [f"ms, batch {batch}", "share", "images/s"]
    header += [] if found.batch is None else [f"top-1 per ms, batch {found.batch}"]
    rows = [header]
    for row in report.rows:
        sizes = changed(row.parameters, base.parameters), changed(row.macs, base.macs)
        cell = [row.name, *sizes, f"{found.gflops(row.name):z.4g}"]
        for batch in batches:
            one, own = row.latency[batch], row.name == report.baseline
            share = f"1 (itself: {ratio_text(report.null[batch])})" if own else ratio_text(one)
            cell += [f"{found.milliseconds(row.name, batch):z.4g}", share]
            cell += [f"{found.images_per_second(row.name, batch):z,.0f}"]
        efficiency = found.efficiency(row.name)
        rows.append(cell + ([] if efficiency is None else [f"{efficiency:z.4g}"]))
    return rows


def _by_class(found: ComparedModels) -> list[str]:
    base = found[found.report.baseline]
    seen = [place for place, count in enumerate(base.support) if count]
    order, note = seen, []
    if len(seen) > ALL_CLASSES:
        order = sorted(seen, key=lambda place: base.per_class[place] or 0.0)[:HARDEST]
        note = [f"The {HARDEST} of {len(seen)} classes that are hardest for the baseline."]
    rows = [["class", "images", *found.names]]
    for place in order:
        shares = [_share(found[name].per_class[place]) for name in found.names]
        rows.append([found.class_names[place], str(base.support[place]), *shares])
    return [*note, markdown_table(rows)]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:z.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.3f}"
