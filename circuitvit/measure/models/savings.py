"""The savings of each removed part of a ViT: milliseconds, multiply-accumulates and parameters.

Parts are taken away one after another, and each saves the difference between the model with and
without it, so the rows add up to the whole. Heads of one block are alike but not equal in this: the
last one takes the LayerNorm along.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuitvit.charts.tables import html_table, markdown_table
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.files import write_text, writing_folder
from circuitvit.files.records import SAVINGS
from circuitvit.files.restoring import load_record
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import node_named, units_of
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.measure.models.cost import Costs, vit_macs, vit_parameters
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

SavingStep = tuple[str, ViTConfig]


@dataclass(frozen=True)
class Saving:
    """The cost of one part, or the saving of its removal.

    Attributes:
        name: what was removed: `a0.h1` or `m3`; of a model that is given, `a0: 3 of 4 heads`,
            `m3: 16 of 64 neurons` or `constants` (which cost something).
        latency_ms: milliseconds a batch, by the table of costs; None without one.
        macs: multiply-accumulates for one image.
        parameters: their number.
    """

    name: str
    latency_ms: float | None
    macs: int
    parameters: int


@dataclass(frozen=True)
class Savings:
    """The result of `savings`; a notebook shows it as a table.

    Attributes:
        rows: one a removed part, in forward order; they add up to `dense` − `left`.
        dense: what the whole model costs.
        left: what the smaller one costs.
        batch: images at once, for the latency.
    """

    rows: tuple[Saving, ...]
    dense: Saving
    left: Saving
    batch: int | None

    def table(self) -> list[list[str]]:
        """Header and rows as text, with shares of the dense model."""
        header = ["removed", "saves MACs", "saves params"]
        if self.batch is not None:
            header.insert(1, f"saves ms, batch {self.batch}")
        return [header, *(self._cells(row) for row in (*self.rows, self.left, self.dense))]

    def _cells(self, row: Saving) -> list[str]:
        cells = [f"{row.macs:,}", f"{row.parameters:,}"]
        shares = [row.macs / self.dense.macs, row.parameters / self.dense.parameters]
        if row.latency_ms is not None and self.dense.latency_ms is not None:
            cells.insert(0, f"{row.latency_ms:z.4g}")
            shares.insert(0, row.latency_ms / (self.dense.latency_ms or 1))
        return [row.name, *(f"{c} ({s:z.1%})" for c, s in zip(cells, shares, strict=True))]

    def markdown(self) -> str:
        """The table as Markdown."""
        return markdown_table(self.table()) + "\n"

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return SAVINGS.marked(asdict(self))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `savings.json` and `savings.md` into a folder.

        Raises:
            CircuitError: it can't be written to.
        """
        with writing_folder(folder) as beside:
            SAVINGS.write(beside / "savings.json", self.as_dict())
            write_text(beside / "savings.md", self.markdown())
        return Path(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Savings":
        """Read what `save` wrote.

        Args:
            path: the folder, or `savings.json` in it.

        Raises:
            CircuitError: the file is missing, cut short, or something else.
        """
        return load_record(path, SAVINGS, cls)


@in_default_modes
def savings(vit: ViT, kept: ViT | Circuit | Iterable[str], costs: Costs | None = None) -> Savings:
    """Compute the saving of each removed part of a model.

    Args:
        vit: the whole model.
        kept: a circuit, or the names of the units that stay: a row for each removed head and MLP,
            under `zero`. Or the compiled model: a row for each sub-layer that shrank, and one for
            the constants that were added.
        costs: measured times; without them there are MACs and parameters only.

    Raises:
        CircuitError: the units don't exist, the model is no smaller version of this one, or the
            costs don't cover it.
    """
    check_vit(vit)
    if isinstance(kept, CircuitViT):
        raise CircuitError(
            "this is a circuit that was compiled with level='edge', whose parts have no price of "
            "their own. Its explain() tells what was saved, and measure how much time."
        )
    if isinstance(kept, ViT):
        steps = list(_steps_to(vit.config, kept.config))
    else:
        if isinstance(kept, Circuit):
            check_circuit(vit, kept)
            kept = kept.units()
        steps = list(_unit_steps(vit.config, kept))
    before = dense = _cost("the dense model", vit.config, costs)
    rows = []
    for name, config in steps:
        after = _cost(name, config, costs)
        ms = None
        if before.latency_ms is not None and after.latency_ms is not None:
            ms = before.latency_ms - after.latency_ms
        rows.append(
            Saving(name, ms, before.macs - after.macs, before.parameters - after.parameters)
        )
        before = after
    left = replace(before, name="what is left")
    return Savings(tuple(rows), dense, left, None if costs is None else costs.batch)


def without_unit(config: ViTConfig, unit: str) -> ViTConfig:
    """The shape with one head or MLP less."""
    node = node_named(unit)
    block = node.block
    assert block is not None
    if node.head is None:
        return replace(config, mlp_width=_with(config.mlp_width, block, 0))
    return replace(config, heads=_with(config.heads, block, config.heads[block] - 1))


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _cost(name: str, config: ViTConfig, costs: Costs | None) -> Saving:
    ms = None if costs is None else costs.predict(config)
    return Saving(name, ms, vit_macs(config), vit_parameters(config))


def _unit_steps(config: ViTConfig, kept: Iterable[str]) -> Iterator[SavingStep]:
    everything, stay = units_of(config), [kept] if isinstance(kept, str) else list(kept)
    unknown = sorted(set(stay) - set(everything))
    if unknown:
        raise CircuitError(
            f"{len(unknown)} units do not exist in this ViT ({', '.join(unknown[:5])}). Heads are "
            "named 'a2.h1', MLPs 'm3'; circuit.units() gives those of a circuit."
        )
    for unit in everything:
        if unit not in stay:
            config = without_unit(config, unit)
            yield unit, config


def _steps_to(config: ViTConfig, small: ViTConfig) -> Iterator[SavingStep]:
    counts = ("heads", "mlp_width")
    same = replace(
        small,
        **{name: getattr(config, name) for name in counts},
        output_bias=config.output_bias,
        attention_constant=config.attention_constant,
        mlp_constant=config.mlp_constant,
    ) if small.depth == config.depth else None  # fmt: skip
    grown = same is None or any(
        less > more
        for name in counts
        for less, more in zip(getattr(small, name), getattr(config, name), strict=True)
    )
    if grown or same != config:
        raise CircuitError(
            "the second model is no smaller version of the first: it differs in more than heads, "
            "neurons and constants, or has more of them. Give the model and what compile made of "
            "it."
        )
    for block in range(config.depth):
        for name, mark, noun in (("heads", "a", "heads"), ("mlp_width", "m", "neurons")):
            had, has = getattr(config, name)[block], getattr(small, name)[block]
            if has < had:
                config = replace(config, **{name: _with(getattr(config, name), block, has)})
                yield f"{mark}{block}: {had - has} of {had} {noun}", config
    if config != small:
        yield "constants", small
