"""Whether a circuit holds only what it needs: what each kept edge is worth to it.

Wang et al. 2023 (IOI, arXiv 2211.00593) ask it of heads, for each with the set K that shows its
worth best; here K is empty: one edge is removed from the whole circuit, which is what Conmy et al.
2023 (ACDC) ask of each edge as they prune. Edges that stand in for one another therefore look
worthless one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from torch import Tensor

from circuitvit.charts.chart import MINIMALITY as READING
from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.errors import CircuitError
from circuitvit.files.records import MINIMALITY, RecordKind
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.measure.bootstrap import KnownEstimate
from circuitvit.measure.circuits.losses import conditions_of, outcome_of
from circuitvit.measure.circuits.result import Measurement, checked_draws, measured_task
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

MARKDOWN_ROWS = 20


@dataclass(frozen=True)
class EdgeCost:
    """The cost of removing one edge from the circuit; negative if the circuit is better without it.

    Attributes:
        metric: mean of m(C∖e) − m(C), as m is to be minimised.
        share: f(C) − f(C∖e), its share of the difference between full model and no edges.
    """

    metric: float
    share: KnownEstimate


@dataclass(frozen=True)
class Minimality(Measurement):
    """The worth of each kept edge.

    Attributes:
        faithfulness: f of the circuit itself.
        costs: by edge, in the pinned order.
    """

    KIND: ClassVar[RecordKind] = MINIMALITY

    faithfulness: KnownEstimate
    costs: Mapping[str, EdgeCost]

    def needless(self) -> tuple[str, ...]:
        """The edges whose cost is not clearly above zero: the interval's lower end is ≤ 0."""
        return tuple(name for name, cost in self.costs.items() if cost.share.low <= 0)

    def ranked(self) -> list[tuple[str, EdgeCost]]:
        """The edges, costliest first; ties fall by the pinned order."""
        return sorted(self.costs.items(), key=lambda item: -item[1].share.value)

    def table(self) -> list[list[str]]:
        """The costliest edges and how many are needless; header first."""
        rows = [
            [name, f"{cost.metric:+z.3g}", str(cost.share)]
            for name, cost in self.ranked()[:MARKDOWN_ROWS]
        ]
        more = len(self.costs) - len(rows)
        rows += [[f"and {more} more", "", ""]] if more else []
        rows.append([f"not clearly above zero: {len(self.needless())}", "", ""])
        return [["edge", "cost in the metric", "cost as a share"], *rows]

    def figure(self) -> AnyFigure:
        """The cost of every edge, costliest first, with 95% intervals."""
        ranked = self.ranked()
        shares = [cost.share for _, cost in ranked]
        idle = len(self.needless())
        dots = Series(
            "kept edges",
            list(range(1, len(ranked) + 1)),
            [share.value for share in shares],
            low=[share.low for share in shares],
            high=[share.high for share in shares],
            mark="dots",
            hover=[name for name, _ in ranked],
        )
        return chart(
            [dots],
            title=f"Minimality: {idle} of {len(ranked)} edges are not clearly of use",
            subtitle=f"{self.conditions.method}, {self.conditions}; bars: 95% over images",
            reading=READING,
            x_title="kept edges, costliest first",
            y_title="loss of faithfulness without the edge",
            level=0.0,
        )


@in_default_modes
def minimality(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Minimality:
    """Measure the cost of removing each kept edge, one at a time.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: ones that discovery has not seen.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`.
        ablation: what removed edges carry; by default that of discovery, for circuits made by
            hand `patch`.
        reference: images for `mean`.
        bootstrap: resamples of the images for the 95% intervals, ≥ 1.
        seed: draws the resamples.

    Raises:
        CircuitError: the input doesn't fit together, the circuit has no edges, or
            m(full) − m(∅) is not clearly different from 0.
    """
    bootstrap, seed = checked_draws(bootstrap, seed)
    check_vit(vit)
    check_circuit(vit, circuit)
    task = measured_task(
        vit, pairs, [circuit.provenance], metric=metric, ablation=ablation, reference=reference
    )
    edges = circuit.edges
    if not edges:
        raise CircuitError(f"{circuit!r} has no edges to remove. Give a circuit that has some.")
    conditions = conditions_of(task, [circuit.provenance], bootstrap=bootstrap, seed=seed)
    smaller = (circuit.keeping(kept for kept in edges if kept != edge) for edge in edges)
    outcome = outcome_of(task, chain([circuit], smaller), count=1 + len(edges), what="Minimality")
    values, means = outcome.faithfulness(), outcome.circuits.mean(axis=1)
    samples = outcome.resampled_faithfulness(resamples=bootstrap, seed=seed)
    costs = {
        edge: EdgeCost(
            metric=float(means[place] - means[0]),
            share=KnownEstimate.of(values[0] - values[place], samples[:, 0] - samples[:, place]),
        )
        for place, edge in enumerate(edges, start=1)
    }
    return Minimality(conditions, KnownEstimate.of(values[0], samples[:, 0]), costs)
