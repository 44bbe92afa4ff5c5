"""The base of results about circuits: files, pages, default metric and ablation."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from circuitvit.charts.chart import AnyFigure, PlotlyJS, chart_page
from circuitvit.charts.tables import html_table, markdown_table
from circuitvit.checks import whole
from circuitvit.errors import CircuitError
from circuitvit.escaping import markdown_text
from circuitvit.files.records import RecordKind
from circuitvit.files.restoring import load_record
from circuitvit.graph.circuit import Provenance
from circuitvit.images import Pairs
from circuitvit.intervene.metrics import NAMES, Metric
from circuitvit.intervene.task import PatchingTask
from circuitvit.measure.circuits.losses import Conditions
from circuitvit.models.vit import ViT

MeasurementType = TypeVar("MeasurementType", bound="Measurement")

METRIC = "logit_difference"
"""What circuits are judged by whose discovery is not known, such as those made by hand."""
ABLATION = "patch"
"""What the edges that they remove carry."""


@dataclass(frozen=True)
class Measurement:
    """A result about circuits; `figure`, `markdown` and the figures themselves are its own.

    Attributes:
        conditions: under which it was obtained.
    """

    KIND: ClassVar[RecordKind]
    DERIVED: ClassVar[tuple[str, ...]] = ()
    """Fields of the file that follow from the others."""

    conditions: Conditions

    def figure(self) -> AnyFigure:
        """The result as a plotly figure; `figure.save("x.svg")` (or `.png`, `.pdf`) writes it."""
        raise NotImplementedError

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        raise NotImplementedError

    def markdown(self) -> str:
        """The table and the conditions, as Markdown."""
        conditions = markdown_text(self.conditions)
        return f"{markdown_table(self.table())}\n\n{conditions}; 95% intervals over images.\n"

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return self.KIND.marked(asdict(self))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON.

        Raises:
            CircuitError: the file can't be written.
        """
        return self.KIND.write(path, self.as_dict())

    @classmethod
    def load(cls: type[MeasurementType], path: str | os.PathLike[str]) -> MeasurementType:
        """Read a result that `save` wrote.

        Raises:
            CircuitError: the file is missing, cut short, or something else.
        """
        return load_record(path, cls.KIND, cls, derived=cls.DERIVED)

    def to_html(self, path: str | os.PathLike[str], *, plotlyjs: PlotlyJS = True) -> Path:
        """Write the figure as a page that works offline.

        Args:
            path: the file to write.
            plotlyjs: True puts plotly.js (5 MB) into the page, `"directory"` beside it, one file
                for all the pages of a folder.

        Raises:
            CircuitError: the file can't be written.
        """
        return chart_page(path, self.figure(), plotlyjs=plotlyjs)


def checked_draws(bootstrap: object, seed: object) -> tuple[int, int]:
    """The number of resamples and the seed, as whole numbers.

    Raises:
        CircuitError: they are none, or too small.
    """
    resamples, start = whole(bootstrap, "bootstrap"), whole(seed, "seed")
    if resamples < 1 or start < 0:
        raise CircuitError(
            f"bootstrap is {resamples} and seed {start}, expected ≥ 1 resamples and a seed ≥ 0."
        )
    return resamples, start


def checked_names(named: Mapping[Any, object], what: str) -> None:
    """Refuse names that a file would give back as something else.

    Raises:
        CircuitError: a name is no text.
    """
    wrong = [name for name in named if not isinstance(name, str)]
    if wrong:
        raise CircuitError(
            f"the {what} are named {', '.join(map(repr, wrong[:5]))}, expected texts. Give "
            f"{{{str(wrong[0])!r}: …}}."
        )


def measured_task(
    vit: ViT,
    pairs: Pairs,
    found: Iterable[Provenance],
    *,
    metric: Metric | None,
    ablation: str | None,
    reference: Tensor | None,
) -> PatchingTask:
    """The task to measure circuits on; metric and ablation are by default those of discovery.

    Raises:
        CircuitError: the metric or ablation of discovery is not known, or doesn't fit the pairs.
    """
    origins = list(found)
    known = ablation_of(ablation, origins)
    if ablation is None and known == "mean" and reference is None:
        raise CircuitError(
            "the circuit was found under 'mean', which needs reference images. Give "
            "reference=images, or say which ablation=."
        )
    return PatchingTask.checked(
        vit, pairs, metric=metric_of(metric, origins), ablation=known, reference=reference
    )


def metric_of(asked: Metric | None, found: Iterable[Provenance]) -> Metric:
    """The metric to use: the one asked for, else that of discovery, else `METRIC`.

    Circuits whose discovery is not known go by that of the others.

    Raises:
        CircuitError: discovery used several, or a callable.
    """
    if asked is not None:
        return asked
    name = _one(found, "metric") or METRIC
    if name not in NAMES:
        raise CircuitError(
            f"discovery used the callable metric {name!r}, of which only the name is recorded. "
            f"Give metric= that function, or one of {NAMES}."
        )
    return name


def ablation_of(asked: str | None, found: Iterable[Provenance]) -> str:
    """The ablation to use: the one asked for, else that of discovery, else `ABLATION`.

    Circuits whose discovery is not known go by that of the others.

    Raises:
        CircuitError: discovery used several.
    """
    if asked is not None:
        return asked
    return _one(found, "ablation") or ABLATION


def _one(found: Iterable[Provenance], what: Literal["ablation", "metric"]) -> str | None:
    known = sorted({name for origin in found for name in origin.known(what)})
    if len(known) > 1:
        raise CircuitError(
            f"the {what} of discovery is {', '.join(known)}, so it must be said which to use "
            f"here. Give {what}=."
        )
    return known[0] if known else None
