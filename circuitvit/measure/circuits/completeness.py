"""Whether a circuit holds all that the model uses: knock-outs must hurt both alike.

Wang et al. 2023 (IOI, arXiv 2211.00593): for sets K, |F(C∖K) − F(M∖K)| is small if C is complete.
Theirs are sets of heads; ours are of the circuit's edges or units, drawn at random, and values
are on the scale of faithfulness: 0 is no edges, 1 the full model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from circuitvit.charts.chart import COMPLETENESS as READING
from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.checks import whole
from circuitvit.errors import CircuitError
from circuitvit.files.records import COMPLETENESS, RecordKind
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.edge_graph import edge_names_of, node_named
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.measure.bootstrap import KnownEstimate
from circuitvit.measure.circuits.losses import conditions_of, outcome_of
from circuitvit.measure.circuits.result import Measurement, checked_draws, measured_task
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

Removed = Literal["edges", "units"]


@dataclass(frozen=True)
class Knockout:
    """One set K, removed from the circuit and from the model.

    Attributes:
        removed: names of its edges or units.
        circuit: (m(C∖K) − m(∅)) / (m(full) − m(∅)).
        model: (m(full∖K) − m(∅)) / (m(full) − m(∅)).
    """

    removed: tuple[str, ...]
    circuit: KnownEstimate
    model: KnownEstimate


@dataclass(frozen=True)
class Completeness(Measurement):
    """The difference that knock-outs make in a circuit and in its model.

    Attributes:
        of: whether edges or units were removed.
        faithfulness: f of the circuit itself, nothing removed.
        gap: mean of |circuit − model| over the knock-outs; 0 is complete.
        knockouts: one for each set.
    """

    KIND: ClassVar[RecordKind] = COMPLETENESS

    of: str
    faithfulness: KnownEstimate
    gap: KnownEstimate
    knockouts: tuple[Knockout, ...]

    def table(self) -> list[list[str]]:
        """A row for each set; header first."""
        header = [f"{self.of} removed", "circuit without them", "model without them"]
        rows = [[str(len(k.removed)), str(k.circuit), str(k.model)] for k in self.knockouts]
        return [header, *rows, ["mean gap", str(self.gap), ""]]

    def figure(self) -> AnyFigure:
        """Circuit against model, a dot for each set; complete circuits lie on the diagonal."""
        circuit = [knockout.circuit for knockout in self.knockouts]
        dots = Series(
            "knock-outs",
            [knockout.model.value for knockout in self.knockouts],
            [item.value for item in circuit],
            low=[item.low for item in circuit],
            high=[item.high for item in circuit],
            mark="dots",
            hover=[f"{len(knockout.removed)} {self.of} removed" for knockout in self.knockouts],
        )
        return chart(
            [dots],
            title=f"Completeness: mean gap {self.gap}",
            subtitle=f"{self.conditions.method}, {self.conditions}; bars: 95% over images",
            reading=READING,
            x_title="model without K, on the scale of f",
            y_title="circuit without K",
            diagonal=True,
        )


@in_default_modes
def completeness(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    of: Removed = "edges",
    knockouts: int = 20,
    metric: Metric | None = None,
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Completeness:
    """Whether random knock-outs hurt the circuit as they hurt the model.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: ones that discovery has not seen.
        of: what is removed: edges of the circuit, or its units with all their edges.
        knockouts: how many sets are drawn; the size of each is drawn evenly from 1 to all.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`.
        ablation: what removed edges carry; by default that of discovery, for circuits made by
            hand `patch`.
        reference: images for `mean`.
        bootstrap: resamples of the images for the 95% intervals, ≥ 1.
        seed: draws the sets and the resamples.

    Raises:
        CircuitError: the input doesn't fit together, the circuit has nothing to remove, or
            m(full) − m(∅) is not clearly different from 0.
    """
    bootstrap, seed = checked_draws(bootstrap, seed)
    count = whole(knockouts, "knockouts")
    if of not in get_args(Removed) or count < 1:
        raise CircuitError(
            f"of is {of!r} and knockouts {count}, expected one of {get_args(Removed)} and ≥ 1."
        )
    check_vit(vit)
    check_circuit(vit, circuit)
    task = measured_task(
        vit, pairs, [circuit.provenance], metric=metric, ablation=ablation, reference=reference
    )
    sets = _sets(circuit, of, count, seed)
    full = circuit.keeping(edge_names_of(circuit.config, circuit.qkv))

    def runs() -> Iterator[Circuit]:
        yield circuit
        for removed in sets:
            yield _without(circuit, removed, of)
            yield _without(full, removed, of)

    conditions = conditions_of(task, [circuit.provenance], bootstrap=bootstrap, seed=seed)
    outcome = outcome_of(task, runs(), count=1 + 2 * count, what="Completeness")
    values = outcome.faithfulness()
    samples = outcome.resampled_faithfulness(resamples=bootstrap, seed=seed)
    each = [KnownEstimate.of(value, samples[:, place]) for place, value in enumerate(values)]
    gaps = np.abs(values[1::2] - values[2::2]).mean()
    gap = KnownEstimate.of(gaps, np.abs(samples[:, 1::2] - samples[:, 2::2]).mean(axis=1))
    drawn = zip(sets, each[1::2], each[2::2], strict=True)
    return Completeness(conditions, of, each[0], gap, tuple(Knockout(*item) for item in drawn))


def _sets(circuit: Circuit, of: Removed, count: int, seed: int) -> list[tuple[str, ...]]:
    names = circuit.edges if of == "edges" else circuit.units()
    if not names:
        raise CircuitError(
            f"{circuit!r} has no {of} to remove. Give a circuit with a path from embed to logits."
        )
    generator = np.random.default_rng([seed, 1])
    sets = []
    for _ in range(count):
        size = int(generator.integers(1, len(names) + 1))
        chosen = np.sort(generator.permutation(len(names))[:size])
        sets.append(tuple(names[place] for place in chosen))
    return sets


def _without(circuit: Circuit, removed: tuple[str, ...], of: Removed) -> Circuit:
    gone = set(removed)
    if of == "edges":
        return circuit.keeping(edge for edge in circuit.edges if edge not in gone)
    ends = ((edge, *edge.split("->")) for edge in circuit.edges)
    return circuit.keeping(
        edge for edge, writer, reader in ends if not gone & {writer, node_named(reader).unit}
    )
