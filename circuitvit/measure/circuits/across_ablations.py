"""Circuits under `patch`, `zero` and `mean` side by side.

What removed edges carry is a choice, and a circuit that is faithful under one may not be under
another (Miller et al. 2024, arXiv 2407.08734). Hence the gap between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuitvit.charts.chart import ABLATIONS as READING
from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.errors import CircuitError
from circuitvit.escaping import markdown_text
from circuitvit.files.records import ACROSS_ABLATIONS, RecordKind
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.intervene.task import PatchingTask
from circuitvit.measure.bootstrap import UNDEFINED, Estimate, shown
from circuitvit.measure.circuits.losses import Outcome, conditions_of, outcome_of
from circuitvit.measure.circuits.result import (
    Measurement,
    checked_draws,
    checked_names,
    metric_of,
)
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

COLORS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#a61e4d", "#364fc7")


@dataclass(frozen=True)
class Comparison:
    """One circuit under several ablations.

    Attributes:
        edges: how many it has.
        found_under: the ablation of discovery.
        left: by ablation, how many edges don't dangle.
        faithfulness: by ablation, f; its figures are None where it is undefined.
        gap: the largest f minus the smallest of those that are defined; undefined where none or
            only one of several is.
    """

    edges: int
    found_under: str | None
    left: Mapping[str, int]
    faithfulness: Mapping[str, Estimate]
    gap: Estimate


@dataclass(frozen=True)
class AcrossAblations(Measurement):
    """Circuits under several ablations.

    Attributes:
        circuits: by name.
        undefined: by ablation, why f is undefined under it; empty where it is defined under all.
    """

    KIND: ClassVar[RecordKind] = ACROSS_ABLATIONS

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"undefined"})

    circuits: Mapping[str, Comparison]
    undefined: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Comparison:
        return self.circuits[name]

    def table(self) -> list[list[str]]:
        """A row for each circuit; header first."""
        ablations = list(next(iter(self.circuits.values())).faithfulness)
        header = ["circuit", "edges", "found under", *(f"f, {a}" for a in ablations), "gap"]
        rows = [
            [
                name,
                str(one.edges),
                one.found_under or "–",
                *(str(estimate) for estimate in one.faithfulness.values()),
                str(one.gap),
            ]
            for name, one in self.circuits.items()
        ]
        return [header, *rows]

    def markdown(self) -> str:
        """The table, the conditions, and where and why f is undefined; as Markdown."""
        reasons = (
            f"\nUnder {name}, {markdown_text(why)}.\n" for name, why in self.undefined.items()
        )
        return super().markdown() + "".join(reasons)

    def figure(self) -> AnyFigure:
        """Faithfulness under each ablation, a colour for each circuit, with 95% intervals."""
        series = [
            Series(
                f"{name}, gap {shown(one.gap.value)}",
                [f"{a}: {UNDEFINED}" if a in self.undefined else a for a in one.faithfulness],
                [estimate.value for estimate in one.faithfulness.values()],
                low=[estimate.low for estimate in one.faithfulness.values()],
                high=[estimate.high for estimate in one.faithfulness.values()],
                color=COLORS[place % len(COLORS)],
                mark="dots",
                hover=[f"{left:,} of {one.edges:,} edges left" for left in one.left.values()],
            )
            for place, (name, one) in enumerate(self.circuits.items())
        ]
        return chart(
            series,
            title="Faithfulness under each ablation",
            subtitle=f"{self.conditions}; bars: 95% over images",
            reading=READING,
            x_title="what removed edges carry",
            y_title="faithfulness, f",
            x_kind="category",
            level=1.0,
            level_name="the full model",
        )


@in_default_modes
def across_ablations(
    vit: ViT,
    circuits: Circuit | Mapping[str, Circuit],
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    ablations: Sequence[Ablation] = ("patch", "zero", "mean"),
    reference: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> AcrossAblations:
    """Faithfulness of circuits under each ablation, and the gap between them.

    The gap's interval is that of max − min on the same resamples, so it leans upwards where the
    ablations agree within the noise. Where f is undefined, since m(full) − m(∅) is not clearly
    different from 0, it is None there.

    Args:
        vit: the model.
        circuits: one, or several by name.
        pairs: ones that discovery has not seen; with corrupt images for `patch`.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`.
        ablations: which to compare.
        reference: images for `mean`.
        bootstrap: resamples of the images for the 95% intervals, ≥ 1.
        seed: draws the resamples.

    Raises:
        CircuitError: the input doesn't fit together.
    """
    bootstrap, seed = checked_draws(bootstrap, seed)
    named = {"circuit": circuits} if isinstance(circuits, Circuit) else circuits
    if not isinstance(named, Mapping) or not named or not ablations:
        raise CircuitError(
            f"got circuits of type {type(circuits).__name__} and the ablations {ablations}, "
            f"expected a Circuit or {{name: Circuit}}, and some of {get_args(Ablation)}."
        )
    checked_names(named, "circuits")
    check_vit(vit)
    for circuit in named.values():
        check_circuit(vit, circuit)
    found = [circuit.provenance for circuit in named.values()]
    asked = metric_of(metric, found)
    tasks = {
        ablation: PatchingTask.checked(
            vit, pairs, metric=asked, ablation=ablation, reference=reference
        )
        for ablation in ablations
    }
    recorded = tasks.get("mean", tasks[ablations[0]])
    conditions = conditions_of(recorded, found, bootstrap=bootstrap, seed=seed)
    outcomes = {
        ablation: outcome_of(
            task, named.values(), count=len(named), what=f"Under {ablation}", undefined=True
        )
        for ablation, task in tasks.items()
    }
    samples = {
        ablation: outcome.resampled_faithfulness(resamples=bootstrap, seed=seed)
        for ablation, outcome in outcomes.items()
    }
    compared = {
        name: _comparison(circuit, place, outcomes, samples)
        for place, (name, circuit) in enumerate(named.items())
    }
    reasons = {ablation: outcome.why_undefined for ablation, outcome in outcomes.items()}
    return AcrossAblations(
        replace(conditions, ablation=None),
        compared,
        undefined={ablation: why for ablation, why in reasons.items() if why},
    )


def _comparison(
    circuit: Circuit,
    place: int,
    outcomes: Mapping[str, Outcome],
    samples: Mapping[str, Float[np.ndarray, "resample circuit"]],
) -> Comparison:
    values = {name: float(one.faithfulness()[place]) for name, one in outcomes.items()}
    drawn = {name: one[:, place] for name, one in samples.items()}
    defined = [name for name, value in values.items() if not np.isnan(value)]
    gap = Estimate(None, None, None)
    if len(defined) >= min(2, len(values)):
        gaps = np.ptp(np.stack([drawn[name] for name in defined]), axis=0)
        gap = Estimate.of(float(np.ptp([values[name] for name in defined])), gaps)
    return Comparison(
        edges=len(circuit),
        found_under=circuit.provenance.ablation,
        left={name: one.left[place] for name, one in outcomes.items()},
        faithfulness={name: Estimate.of(values[name], drawn[name]) for name in values},
        gap=gap,
    )
