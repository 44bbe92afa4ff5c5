"""Which model to deploy: classification, calibration, cost and speed of models side by side."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.charts.chart import Figure, chart_page
from circuitvit.charts.panels import Panelled, panels
from circuitvit.charts.tables import html_table
from circuitvit.errors import CircuitError
from circuitvit.files import plain_json, write_text, writing_folder
from circuitvit.files.records import EVALUATION
from circuitvit.files.restoring import naming, warn_of_altered
from circuitvit.measure.bootstrap import KnownEstimate, resampled_means
from circuitvit.measure.models.accuracy import all_logits, checked_labels
from circuitvit.measure.models.advice import GIVE, Advice, advise
from circuitvit.measure.models.classification import RESAMPLES, Classification, classification
from circuitvit.measure.models.comparability import (
    checked_batches,
    checked_class_names,
    checked_fit,
)
from circuitvit.measure.models.evaluation_file import LIMITS, plain_evaluation, read_evaluation
from circuitvit.measure.models.evaluation_text import cells, evaluation_markdown
from circuitvit.measure.models.latency import NULL, paired_ratio
from circuitvit.measure.models.limits import Limits, limits_of
from circuitvit.measure.models.report import Report, checked_baseline, side_by_side
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found; in a notebook it shows itself as a table.

    Attributes:
        report: accuracy, parameters, MACs and latency by model, and the machine.
        classified: by model, how it classifies.
        class_names: in the logits' order.
        batch: the batch size that `cost`, `efficiency`, `pareto` and `advice` refer to, the
            largest that was timed; None if none was, where GFLOPs take the place of time.
        seed: which drew the bootstrap samples.
    """

    report: Report
    classified: Mapping[str, Classification]
    class_names: tuple[str, ...]
    batch: int | None
    seed: int

    def __getitem__(self, name: str) -> Classification:
        return self.classified[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The models, in the order given."""
        return tuple(self.classified)

    def top1(self, name: str) -> float:
        """Share of images that a model gets right, 0–1."""
        return self.classified[name].accuracy.top1

    def gflops(self, name: str) -> float:
        """Billions of floating-point operations for one image: 2 × MACs ÷ 10⁹."""
        return 2e-9 * self.report[name].macs

    def cost(self, name: str) -> float:
        """Milliseconds for a batch of `batch` images, or GFLOPs if nothing was timed.

        Time is the baseline's median × the ratio to it that was paired round by round, so that
        costs stand to each other as `ratio` does; the report's `median_ms` are each model's own.
        """
        return self.gflops(name) if self.batch is None else self.milliseconds(name, self.batch)

    def milliseconds(self, name: str, batch: int) -> float:
        """Time for a batch of so many images: the baseline's median × the paired ratio to it.

        Raises:
            CircuitError: that batch size was not timed.
        """
        if batch not in self.report.null:
            raise CircuitError(
                f"batch size {batch} was not timed, only {sorted(self.report.null)}. Give it to "
                "evaluate in batches=(…)."
            )
        base = self.report[self.report.baseline].latency[batch]
        return base.median_ms * self.report[name].latency[batch].ratio

    def images_per_second(self, name: str, batch: int | None = None) -> float | None:
        """Throughput at a batch size, by default `batch`, from `milliseconds`.

        None if no size is given and nothing was timed.

        Raises:
            CircuitError: that batch size was not timed.
        """
        batch = self.batch if batch is None else batch
        return None if batch is None else 1e3 * batch / self.milliseconds(name, batch)

    def efficiency(self, name: str) -> float | None:
        """Top-1 (0–1) per millisecond of `cost`; None if nothing was timed."""
        return None if self.batch is None else self.top1(name) / self.cost(name)

    def dominators(self, name: str) -> tuple[str, ...]:
        """The models that are no less accurate and no slower than this, and better in one."""
        mine = (-self.top1(name), self.cost(name))
        theirs = {other: (-self.top1(other), self.cost(other)) for other in self.names}
        return tuple(
            other
            for other, one in theirs.items()
            if one[0] <= mine[0] and one[1] <= mine[1] and one != mine
        )

    def pareto(self) -> tuple[str, ...]:
        """The models that no other dominates, the fastest first.

        A model is dominated if another has at least its top-1 and at most its `cost`, and is
        strictly better in one of them. It goes by the figures themselves, not by their
        intervals; of two with both the same neither dominates.
        """
        return tuple(sorted((n for n in self.names if not self.dominators(n)), key=self.cost))

    def difference(self, name: str, other: str) -> KnownEstimate:
        """Top-1 of one model minus another's, with its 95% interval, paired over images."""
        rows = self._samples[:, self.names.index(name)], self._samples[:, self.names.index(other)]
        return KnownEstimate.of(self.top1(name) - self.top1(other), rows[0] - rows[1])

    @cached_property
    def _samples(self) -> Float[np.ndarray, "resample model"]:
        right = np.stack([self.classified[name].right for name in self.names]).astype(float)
        return resampled_means(right, resamples=RESAMPLES, seed=self.seed)

    def ratio(self, name: str, other: str | None = None) -> KnownEstimate:
        """Time as a share of another model's, with its 95% interval; of MACs if none was timed.

        Any two models are paired round by round. Evaluations of older versions kept no rounds:
        theirs is the quotient of the two ratios to the baseline, with the widest interval that
        these allow. A baseline's own ratio is 1, with the interval of it against itself.

        Args:
            name: the model.
            other: what it is compared with; by default the baseline.
        """
        base = self.report.baseline
        other = base if other is None else other
        if self.batch is None:
            value = self.report[name].macs / max(1, self.report[other].macs)
            return KnownEstimate(value, value, value)
        if base == other:
            own = name == base
            item = self.report.null[self.batch] if own else self.report[name].latency[self.batch]
            value = 1.0 if own else item.ratio
            return KnownEstimate(value, min(value, item.ratio_low), max(value, item.ratio_high))
        if self.has_rounds:
            mine, theirs = (self.report[n].latency[self.batch].rounds_ms for n in (name, other))
            return paired_ratio(mine, theirs, seed=self.seed)
        one, two = self.ratio(name), self.ratio(other)
        return KnownEstimate(one.value / two.value, one.low / two.high, one.high / two.low)

    @property
    def has_rounds(self) -> bool:
        """Whether the time of every round is known, so that any two models can be paired."""
        if self.batch is None:
            return False
        return all(row.latency[self.batch].rounds_ms for row in self.report.rows)

    def is_faster(self, name: str, other: str) -> bool:
        """Whether one model is shown to cost less than another.

        Without times, fewer MACs. With them, the 95% interval of the ratio of the two, paired round
        by round, has to end below what the baseline claims against itself; in evaluations of older
        versions, their two intervals against the baseline may not touch.
        """
        if not self.has_rounds or self.batch is None:
            return self.ratio(name).high < self.ratio(other).low
        return self.ratio(name, other).high < min(1.0, self.report.null[self.batch].ratio_low)

    def advice(
        self,
        *,
        give: float = GIVE,
        max_latency: float | int | None = None,
        min_accuracy: float | int | None = None,
        max_parameters: float | int | None = None,
    ) -> Advice:
        """Which model to deploy, and why; never one that another within the limits dominates.

        Candidates are compared with each other: top-1 image by image, time round by round.

        Args:
            give: how much top-1 (0–1) the balanced choice may lose against the most accurate.
            max_latency: milliseconds for a batch of `batch` images, > 0, as `cost` tells them;
                evaluate with `batches=(1,)` for a limit on single images.
            min_accuracy: top-1 on these images, 0–1.
            max_parameters: how many the model may have, ≥ 1.

        Raises:
            CircuitError: a limit is out of range, `max_latency` is given and nothing was timed, or
                no model is within all limits; the nearest one is named.
        """
        limits = Limits(max_latency, min_accuracy, max_parameters)
        return advise(self, give=give, limits=limits)

    def table(self) -> list[list[str]]:
        """Header and rows as text, one a model."""
        return cells(self)

    def markdown(self, **limits: float | int | None) -> str:
        """The whole report as Markdown: tables, Pareto set, advice, definitions, machine.

        Args:
            **limits: `max_latency`, `min_accuracy` and `max_parameters` of the advice, as `advice`
                takes them; where no model is within them, the report says so.

        Raises:
            CircuitError: a limit is out of range.
        """
        return evaluation_markdown(self, limits_of(limits))

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def figure(self) -> Figure:
        """Six panels: accuracy, against cost, per class, calibration, confidence, size."""
        front = set(self.pareto())
        drawn = [
            Panelled(
                name=name,
                accuracy=(self[name].interval.value, self[name].interval.low,
                          self[name].interval.high),
                cost=self.cost(name),
                on_front=name in front,
                calibration_error=self[name].calibration_error,
                reliability=[
                    (item.confidence, item.accuracy, item.images)
                    for item in self[name].bins
                    if item.confidence is not None and item.accuracy is not None
                ],
                per_class=self[name].per_class,
                right=self[name].confidence_right,
                wrong=self[name].confidence_wrong,
                parameters=self.report[name].parameters,
                macs=self.report[name].macs,
            )
            for name in self.names
        ]  # fmt: skip
        timed = f"ms for a batch of {self.batch}" if self.batch is not None else "GFLOPs an image"
        machine = self.report.machine
        images = self.report.rows[0].accuracy.images
        return panels(
            drawn,
            baseline=self.report.baseline,
            class_names=self.class_names,
            cost_title=timed,
            subtitle=f"{images:,} images; {machine['device']}, threads: {machine['threads']}; "
            "bars: 95% over images",
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, without the single images."""
        return plain_evaluation(self, single_images=False)

    def save(self, folder: str | os.PathLike[str], **limits: float | int | None) -> Path:
        """Write `report.json`, `report.md` and `figure.html` into a folder.

        The JSON holds what `as_dict` gives and, for `load`, which images each model gets right.

        Args:
            folder: made if need be.
            **limits: of the advice, as `markdown` takes them.

        Raises:
            CircuitError: it can't be written to, or a limit is out of range.
        """
        asked = limits_of(limits)
        with writing_folder(folder) as beside:
            EVALUATION.write(
                beside / "report.json", plain_evaluation(self, single_images=True, limits=asked)
            )
            write_text(beside / "report.md", evaluation_markdown(self, asked))
            chart_page(beside / "figure.html", self.figure())
        return Path(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read what `save` wrote.

        Args:
            path: the folder, or `report.json` in it.

        Raises:
            CircuitError: the file is missing, cut short, something else, or of a version that
                didn't keep which images a model gets right.
        """
        body, fields = read_evaluation(path)
        with naming(path, EVALUATION):
            found = cls(**fields)
            found.markdown()  # what can't be shown doesn't fit together
            asked = limits_of(body.get(LIMITS) or {})
            own = plain_json(plain_evaluation(found, single_images=True, limits=asked))
        if not found.has_rounds:  # an older version may have worded it otherwise
            own.pop("advice")
        warn_of_altered(EVALUATION.place(path), body, own)
        return found


@in_default_modes
def evaluate(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    baseline: str | None = None,
    batches: Sequence[int] = (1, 8, 64),
    rounds: int = 15,
    seed: int = 0,
) -> Evaluation:
    """Evaluate models on the same labelled images, each in one pass, and time them side by side.

    Args:
        models: by name; a `ViT`, a `CircuitViT`, or any module from images to logits.
        images: [image channel height width], resident where the models are, in their dtype or
            theirs in half precision.
        labels: [image], each 0 to classes − 1.
        class_names: in the logits' order; by default those that a model's preprocessing knows,
            else numbers.
        baseline: the name that ratios refer to; by default the first.
        batches: batch sizes for the latency; the largest is the one that efficiency, the Pareto
            set and the advice refer to. None of them to leave time out and go by GFLOPs.
        rounds: how often each model is timed at each batch size, ≥ 3.
        seed: draws the bootstrap samples of the confidence intervals.

    Raises:
        CircuitError: there are no models or images, labels or class names don't fit, models
            are of other classes or image sizes, the baseline isn't among them, or the batches or
            rounds are too small.
    """
    baseline = checked_baseline(models, baseline)
    if NULL in models:
        raise CircuitError(
            f"a model is called {NULL!r}, which is the baseline against itself. Rename it."
        )
    sizes = checked_batches(batches, rounds)
    labels = checked_labels(labels, images)
    classes = checked_fit(models, images)
    known = checked_class_names(class_names, models, classes)
    classified = {}
    with progress("evaluating", len(models)) as advance:
        for name, model in models.items():
            try:
                classified[name] = classification(all_logits(model, images), labels, seed=seed)
            except CircuitError as cause:
                raise CircuitError(f"{name}: {cause}") from cause
            advance(name)
    found = {name: one.accuracy for name, one in classified.items()}
    report = side_by_side(
        models, images, found, baseline=baseline, batches=sizes, rounds=rounds, seed=seed
    )
    return Evaluation(report, classified, known, max(sizes, default=None), seed)
