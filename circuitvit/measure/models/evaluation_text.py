"""An evaluation as tables and as Markdown."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from circuitvit.charts.tables import markdown_table
from circuitvit.escaping import markdown_code, markdown_text
from circuitvit.measure.models.limits import Limits, NoneWithinError
from circuitvit.measure.models.report import changed, ratio_text

if TYPE_CHECKING:
    from circuitvit.measure.models.evaluation import Evaluation

ALL_CLASSES = 30
"""With more classes than these the report names only the hardest."""
HARDEST = 15

DEFINITIONS = """\
Precision, recall and F1 are means over the classes that have images. Confidence is the highest
probability, gap how much higher it is when right than when wrong; entropy is in nats. Calibration
error is the expected one over 15 bins (Guo et al. 2017). GFLOPs are 2 × MACs. Intervals are 95%,
those of top-1 over images, those of latency over rounds."""


def cells(found: "Evaluation") -> list[list[str]]:
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


def evaluation_markdown(found: "Evaluation", limits: Limits) -> str:
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
        _advice(found, limits),
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


def _advice(found: "Evaluation", limits: Limits) -> str:
    try:
        return "\n".join(found.advice(**asdict(limits)).lines())
    except NoneWithinError as cause:
        return f"No model is advised: {markdown_text(str(cause))}"


def _classification(found: "Evaluation") -> list[list[str]]:
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


def _cost(found: "Evaluation") -> list[list[str]]:
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


def _by_class(found: "Evaluation") -> list[str]:
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
