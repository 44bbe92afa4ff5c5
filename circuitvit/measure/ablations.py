"""Circuits under `patch`, `zero` and `mean` side by side.

What removed edges carry is a choice, and a circuit that is faithful under one may not be under
another (Miller et al. 2024, arXiv 2407.08734). Hence the gap between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import check_circuit, check_vit
from circuitvit.circuit import Ablation, Circuit
from circuitvit.errors import CircuitError
from circuitvit.html.chart import Figure, Series, chart
from circuitvit.html.readings import ABLATIONS as READING
from circuitvit.images import Pairs
from circuitvit.measure.bootstrap import Estimate
from circuitvit.measure.examination import Examination, Outcome
from circuitvit.measure.measurement import Measurement, checked_draws, checked_names
from circuitvit.metrics import Metric
from circuitvit.records import ACROSS_ABLATIONS, Kind
from circuitvit.torch_modes import in_default_modes
from circuitvit.vit import ViT

COLORS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#a61e4d", "#364fc7")


@dataclass(frozen=True)
class Comparison:
    """One circuit under several ablations.

    Attributes:
        edges: how many it has.
        found_under: the ablation of discovery.
        left: by ablation, how many edges don't dangle.
        faithfulness: by ablation, f.
        gap: the largest f minus the smallest.
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
    """

    KIND: ClassVar[Kind] = ACROSS_ABLATIONS

    circuits: Mapping[str, Comparison]

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

    def figure(self) -> Figure:
        """Faithfulness under each ablation, a colour for each circuit, with 95% intervals."""
        series = [
            Series(
                f"{name}, gap {one.gap.value:z.3f}",
                list(one.faithfulness),
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
    metric: Metric = "logit_difference",
    ablations: Sequence[Ablation] = ("patch", "zero", "mean"),
    reference: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> AcrossAblations:
    """Faithfulness of circuits under each ablation, and the gap between them.

    The gap's interval is that of max − min on the same resamples, so it leans upwards where the
    ablations agree within the noise.

    Args:
        vit: the model.
        circuits: one, or several by name.
        pairs: ones that discovery has not seen; with corrupt images for `patch`.
        metric: m; a name or a callable, see `circuitvit.metrics`.
        ablations: which to compare.
        reference: images for `mean`.
        bootstrap: resamples of the images for the 95% intervals, ≥ 1.
        seed: draws the resamples.

    Raises:
        CircuitError: the input doesn't fit together, or under some ablation removing everything
            hardly changes the metric.
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
    examinations = {
        ablation: Examination.checked(
            vit, pairs, metric=metric, ablation=ablation, reference=reference
        )
        for ablation in ablations
    }
    found = [circuit.provenance for circuit in named.values()]
    recorded = examinations.get("mean", examinations[ablations[0]])
    conditions = recorded.conditions(found, bootstrap=bootstrap, seed=seed)
    outcomes = {
        ablation: one.outcome(named.values(), count=len(named), what=f"Under {ablation}")
        for ablation, one in examinations.items()
    }
    samples = {
        ablation: outcome.resampled_faithfulness(resamples=bootstrap, seed=seed)
        for ablation, outcome in outcomes.items()
    }
    compared = {
        name: _comparison(circuit, place, outcomes, samples)
        for place, (name, circuit) in enumerate(named.items())
    }
    return AcrossAblations(replace(conditions, ablation=None), compared)


def _comparison(
    circuit: Circuit,
    place: int,
    outcomes: Mapping[str, Outcome],
    samples: Mapping[str, Float[np.ndarray, "resample circuit"]],
) -> Comparison:
    values = {name: float(one.faithfulness()[place]) for name, one in outcomes.items()}
    drawn = {name: one[:, place] for name, one in samples.items()}
    gaps = np.ptp(np.stack(list(drawn.values())), axis=0)
    return Comparison(
        edges=len(circuit),
        found_under=circuit.provenance.ablation,
        left={name: one.left[place] for name, one in outcomes.items()},
        faithfulness={name: Estimate.of(values[name], drawn[name]) for name in values},
        gap=Estimate.of(max(values.values()) - min(values.values()), gaps),
    )
