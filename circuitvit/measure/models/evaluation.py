"""Compares models for deployment: classification, calibration, cost and speed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from circuitvit.charts.chart import AnyFigure, chart_page
from circuitvit.charts.panels import Panelled, panels
from circuitvit.charts.tables import html_table
from circuitvit.errors import CircuitError
from circuitvit.files import plain_json, write_text, writing_folder
from circuitvit.files.records import EVALUATION
from circuitvit.files.restoring import naming, warn_of_altered
from circuitvit.measure.models.accuracy import (
    all_logits,
    checked_labels,
    classification,
)
from circuitvit.measure.models.advice import GIVE, Advice, Limits, advise, limits_of
from circuitvit.measure.models.comparability import (
    checked_batches,
    checked_class_names,
    checked_fit,
)
from circuitvit.measure.models.comparison import ComparedModels
from circuitvit.measure.models.evaluation_report import (
    LIMITS,
    cells,
    evaluation_markdown,
    plain_evaluation,
    read_evaluation,
)
from circuitvit.measure.models.latency import NULL
from circuitvit.measure.models.report import checked_baseline, side_by_side
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes


@dataclass(frozen=True, eq=False)
class Evaluation(ComparedModels):
    """The result of `evaluate`; in a notebook it shows itself as a table.

    Attributes:
        report: accuracy, parameters, MACs and latency by model, and the machine.
        classified: by model, how it classifies.
        class_names: in the logits' order.
        batch: the batch size that `cost`, `efficiency`, `pareto` and `advice` refer to, the
            largest that was timed; None if none was, where GFLOPs take the place of time.
        seed: which drew the bootstrap samples.
    """

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

    def figure(self) -> AnyFigure:
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
