"""Models side by side: accuracy, cost and latency in one table."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from circuitvit.charts.tables import html_table, markdown_table
from circuitvit.errors import CircuitError
from circuitvit.escaping import markdown_code, markdown_text
from circuitvit.files import write_text, writing_folder
from circuitvit.files.records import REPORT
from circuitvit.files.restoring import load_record
from circuitvit.measure.circuits.result import checked_names
from circuitvit.measure.models.accuracy import Accuracy, accuracy
from circuitvit.measure.models.cost import macs, parameters
from circuitvit.measure.models.latency import NULL, Latency, latency, machine_of
from circuitvit.torch_modes import in_default_modes

_SIZES = ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))


@dataclass(frozen=True)
class Row:
    """One model's figures.

    Attributes:
        name: what it was called.
        accuracy: on the images that were given.
        parameters: their number.
        macs: multiply-accumulates for one image.
        latency: by batch size.
    """

    name: str
    accuracy: Accuracy
    parameters: int
    macs: int
    latency: Mapping[int, Latency]


@dataclass(frozen=True)
class Report:
    """The result of `measure`; a notebook shows it as a table.

    Attributes:
        rows: one a model, in the order given.
        baseline: the model that ratios refer to.
        null: the baseline's latency against itself, by batch size: what the noise alone claims.
        machine: processor, threads, device and versions.
    """

    rows: tuple[Row, ...]
    baseline: str
    null: Mapping[int, Latency]
    machine: Mapping[str, str]

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def realised(self, name: str, batch: int) -> float | None:
        """Share of the saved MACs that became saved time; None where no MACs were saved."""
        row, base = self[name], self[self.baseline]
        saved = 1 - row.macs / base.macs
        return (1 - row.latency[batch].ratio) / saved if saved > 0 else None

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        batches = sorted(self.null)
        header = ["model", "top-1", "loss", "params", "MACs"]
        header += [f"latency, batch {batch}" for batch in batches]
        rows = [self._cells(row, batches) for row in self.rows]
        if batches:
            nulls = [ratio_text(self.null[batch]) for batch in batches]
            rows.append([f"{self.baseline} against itself", "", "", "", "", *nulls])
        return [header, *rows]

    def _cells(self, row: Row, batches: Sequence[int]) -> list[str]:
        base = self[self.baseline]
        cells = [row.name, f"{row.accuracy.top1:z.2%}", f"{row.accuracy.loss:z.3f}"]
        cells += [changed(row.parameters, base.parameters), changed(row.macs, base.macs)]
        own = row.name == self.baseline
        return cells + ["1" if own else ratio_text(row.latency[batch]) for batch in batches]

    def markdown(self) -> str:
        """The table and the machine, as Markdown."""
        text = markdown_table(self.table())
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        images = self.rows[0].accuracy.images
        base = markdown_code(self.baseline)
        notes = f"{images} images; latency as a ratio to {base}, measured in one process"
        return f"{text}\n\n{notes} (95% interval); {markdown_text(machine)}.\n"

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return REPORT.marked(asdict(self))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.json` and `report.md` into a folder.

        Raises:
            CircuitError: it can't be written to.
        """
        with writing_folder(folder) as beside:
            REPORT.write(beside / "report.json", self.as_dict())
            write_text(beside / "report.md", self.markdown())
        return Path(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Read what `save` wrote, or the report that a demo wrote.

        Args:
            path: the folder, or `report.json` in it.

        Raises:
            CircuitError: the file is missing, cut short, or something else.
        """
        return load_record(path, REPORT, cls, derived=("summary",))


def changed(value: int, base: int) -> str:
    """A count in short, and how it differs from the baseline's."""
    short = next(
        (f"{value / size:z.3g} {unit}" for size, unit in _SIZES if value >= size), str(value)
    )
    return short if value == base or not base else f"{short} ({value / base - 1:+z.0%})"


def ratio_text(item: Latency) -> str:
    """A ratio with its interval."""
    return f"{item.ratio:z.2f} ({item.ratio_low:z.2f}–{item.ratio_high:z.2f})"


@in_default_modes
def measure(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    baseline: str | None = None,
    batches: Sequence[int] = (1, 8, 64),
    rounds: int = 15,
    seed: int = 0,
) -> Report:
    """Measure models on the same images in one process.

    Args:
        models: by name; a `ViT`, or any module from images to logits.
        images: [image channel height width], resident where the models are, in their dtype; a
            model in half precision is given them in it, and so can stand beside one in single.
        labels: [image], each 0 to classes − 1.
        baseline: the name that ratios refer to; by default the first.
        batches: batch sizes for the latency; none to leave it out.
        rounds: how often each model is timed at each batch size.
        seed: draws the bootstrap samples of the confidence intervals.

    Raises:
        CircuitError: there are no models or images, or labels that don't fit.
    """
    baseline = checked_baseline(models, baseline)
    found = {name: accuracy(model, images, labels) for name, model in models.items()}
    return side_by_side(
        models, images, found, baseline=baseline, batches=batches, rounds=rounds, seed=seed
    )


def checked_baseline(models: object, baseline: str | None) -> str:
    """The name that ratios refer to; by default the first.

    Raises:
        CircuitError: there are no models by name, or none of that name.
    """
    if not isinstance(models, Mapping) or not models:
        raise CircuitError("there are no models to measure. Give {name: model}.")
    checked_names(models, "models")
    if baseline is not None and baseline not in models:
        raise CircuitError(
            f"the baseline {baseline!r} is not among the models {list(models)}. Name one of them."
        )
    return next(iter(models)) if baseline is None else baseline


def side_by_side(
    models: Mapping[str, nn.Module],
    images: Tensor,
    found: Mapping[str, Accuracy],
    *,
    baseline: str,
    batches: Sequence[int],
    rounds: int,
    seed: int,
) -> Report:
    """Cost and latency of models, beside the accuracies that were `found`."""
    timed = {
        batch: latency(models, images, baseline=baseline, batch=batch, rounds=rounds, seed=seed)
        for batch in batches
    }
    shape = (images.shape[1], images.shape[2], images.shape[3])
    rows = tuple(
        Row(
            name,
            found[name],
            parameters(model),
            macs(model, shape),
            {batch: timed[batch][name] for batch in batches},
        )
        for name, model in models.items()
    )
    return Report(
        rows, baseline, {batch: timed[batch][NULL] for batch in batches}, machine_of(images.device)
    )
