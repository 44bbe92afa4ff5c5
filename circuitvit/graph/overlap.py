"""The overlap of circuits: shared edges and units, beside the overlap expected by chance.

Knows no torch: saved circuits can be compared anywhere. What finds circuits class by class is
`circuitvit.discover.class_circuits`.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from circuitvit.charts.chart import OVERLAP as READING
from circuitvit.charts.chart import AnyFigure, chart_page
from circuitvit.charts.heatmap import heatmap
from circuitvit.charts.tables import html_table, markdown_table
from circuitvit.errors import CircuitError
from circuitvit.files import write_text, writing_folder
from circuitvit.files.records import OVERLAP
from circuitvit.files.restoring import load_record
from circuitvit.graph.circuit import Circuit, Provenance, agreed, same_edge_set
from circuitvit.graph.edge_graph import edge_count, units_of


@dataclass(frozen=True)
class Likeness:
    """Two circuits beside each other.

    Attributes:
        one: the first one's name.
        other: the second one's name.
        edges_shared: how many edges both have.
        edges_expected: how many two random circuits of these sizes share in the mean.
        jaccard: edges shared over edges in either, 0–1; 1 for two circuits without edges.
        jaccard_expected: its mean over two random circuits of these sizes, all sets of edges
            equally likely.
        units_shared: how many heads and MLPs both have on a path from `embed` to `logits`.
        unit_jaccard: units shared over units in either; 1 for two circuits without units.
        unit_jaccard_expected: its mean over random sets of units of these sizes.
    """

    one: str
    other: str
    edges_shared: int
    edges_expected: float
    jaccard: float
    jaccard_expected: float
    units_shared: int
    unit_jaccard: float
    unit_jaccard_expected: float


@dataclass(frozen=True)
class Overlap:
    """The overlap of circuits of one model, or of models with the same edges.

    The expected values tell overlap from chance, but chance knows nothing of circuits: edges that
    carry any image to the logits are in most circuits, whatever these are about. A further control
    is the overlap of circuits of the same class from other pairs.

    Attributes:
        names: of the circuits, in the order given.
        edges: how many edges each has.
        units: how many heads and MLPs each has on a path from `embed` to `logits`.
        all_edges: how many edges the model has.
        all_units: how many heads and MLPs the model has.
        in_every: how many edges are in every circuit.
        in_any: how many are in at least one.
        pairs: every two circuits, in the order (1, 2), (1, 3), …, (2, 3), ….
    """

    names: tuple[str, ...]
    edges: tuple[int, ...]
    units: tuple[int, ...]
    all_edges: int
    all_units: int
    in_every: int
    in_any: int
    pairs: tuple[Likeness, ...]

    def __post_init__(self) -> None:
        pairs = [(pair.one, pair.other) for pair in self.pairs]
        if pairs != list(combinations(self.names, 2)) or len(set(self.names)) < len(self.names):
            raise CircuitError(
                f"an overlap of {len(self.names)} circuits has each two of their names in order, "
                "each name once; make it with Overlap.of(circuits)."
            )
        if not len(self.names) == len(self.edges) == len(self.units):
            raise CircuitError(
                f"an overlap has {len(self.names)} names, {len(self.edges)} counts of edges and "
                f"{len(self.units)} of units, expected as many of each."
            )

    @classmethod
    def of(cls, circuits: Mapping[str, Circuit]) -> "Overlap":
        """Compare circuits, each with every other.

        Args:
            circuits: one or more, by name; a circuit is cheap to compare: thousands of pairs take
                seconds.

        Raises:
            CircuitError: none is given, or they are of models with different edges.
        """
        names, config, qkv = checked(circuits)
        edges = [set(circuit.edges) for circuit in circuits.values()]
        units = [set(circuit.units()) for circuit in circuits.values()]
        all_edges, all_units = edge_count(config, qkv), len(units_of(config))
        count = range(len(names))
        pairs = tuple(
            _likeness(
                (names[i], names[j]), (edges[i], edges[j]), (units[i], units[j]),
                (all_edges, all_units),
            )
            for i in count
            for j in count[i + 1 :]
        )  # fmt: skip
        return cls(
            names, tuple(map(len, edges)), tuple(map(len, units)), all_edges, all_units,
            len(set.intersection(*edges)), len(set.union(*edges)), pairs,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Overlap({len(self.names)} circuits, {self.in_every} edges in every one)"

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def between(self, one: str, other: str) -> Likeness:
        """Two circuits beside each other, asked for in either order.

        Raises:
            CircuitError: there are no two circuits so called.
        """
        for pair in self.pairs:
            if {pair.one, pair.other} == {one, other}:
                return pair
        raise CircuitError(
            f"got {one!r} and {other!r}, expected two of these names: {', '.join(self.names)}."
        )

    def matrix(self, what: str = "jaccard") -> np.ndarray:
        """A field of `Likeness` for every two circuits [circuit circuit], symmetric.

        The diagonal is of each circuit beside itself: its own edges or units, or 1.

        Raises:
            CircuitError: there is no such field.
        """
        own = {
            "edges_shared": self.edges, "edges_expected": self.edges, "units_shared": self.units,
            **dict.fromkeys(RATIOS, np.ones(len(self.names))),
        }  # fmt: skip
        if what not in own:
            raise CircuitError(f"what is {what!r}, expected one of {tuple(own)}.")
        values = np.diag(np.array(own[what], dtype=float))
        rows, columns = np.triu_indices(len(self.names), 1)
        values[rows, columns] = values[columns, rows] = [getattr(p, what) for p in self.pairs]
        return values

    def rows(self) -> list[dict[str, Any]]:
        """The pairs of circuits as plain values, one row each."""
        return [asdict(pair) for pair in self.pairs]

    def table(self) -> list[list[str]]:
        """Header and rows as text: sizes, then Jaccard (expected by chance) of the edges."""
        alike, chance = self.matrix(), self.matrix("jaccard_expected")
        header = ["circuit", "edges", "units", *self.names]
        rows = [
            [name, f"{self.edges[i]:,}", f"{self.units[i]:,}"]
            + [
                "–" if i == j else f"{alike[i, j]:z.2f} ({chance[i, j]:z.2f})"
                for j in range(len(self.names))
            ]
            for i, name in enumerate(self.names)
        ]
        return [header, *rows]

    def told(self) -> str:
        """In one line, what all circuits have in common."""
        return (
            f"{self.in_every:,} of {self.all_edges:,} edges are in every circuit, "
            f"{self.in_any:,} in at least one"
        )

    def markdown(self) -> str:
        """The table and what it means, as Markdown."""
        return (
            f"{markdown_table(self.table())}\n\nJaccard index of the edges: those that both "
            "circuits have over those that either has; in brackets its mean over random circuits "
            f"of the same sizes. {self.told()}.\n"
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return OVERLAP.marked(asdict(self))

    def figure(self) -> AnyFigure:
        """Jaccard of every two circuits as a plotly heatmap; the counts are in the hover text."""
        found = {(pair.one, pair.other): pair for pair in self.pairs}
        chance = [pair.jaccard_expected for pair in self.pairs]
        mean = math.fsum(chance) / max(1, len(chance))
        by_chance = f"; by chance Jaccard would be {mean:z.3f}" if chance else ""
        return heatmap(
            self.names,
            self.matrix().tolist(),
            own=[f"{edges:,}" for edges in self.edges],
            hover=[
                [self._hover(found, i, j) for j in range(len(self.names))]
                for i in range(len(self.names))
            ],
            title="Edges that circuits share",
            subtitle=f"{self.told()}{by_chance}; on the diagonal each one's edges",
            reading=READING,
            scale_title="Jaccard",
            axis_title="circuit",
        )

    def _hover(self, found: Mapping[tuple[str, str], Likeness], i: int, j: int) -> str:
        if i == j:
            return f"{self.names[i]}\n{self.edges[i]:,} edges, {self.units[i]:,} units"
        first, second = sorted((i, j))
        pair = found[self.names[first], self.names[second]]
        sizes = f"{self.edges[first]:,} and {self.edges[second]:,}"
        return (
            f"{pair.one} and {pair.other}\n"
            f"{pair.edges_shared:,} edges shared of {sizes}; by chance {pair.edges_expected:z.1f}\n"
            f"Jaccard {pair.jaccard:z.3f}; by chance {pair.jaccard_expected:z.3f}\n"
            f"{pair.units_shared:,} units shared, Jaccard {pair.unit_jaccard:z.3f}; by chance "
            f"{pair.unit_jaccard_expected:z.3f}"
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `overlap.json`, `overlap.md` and `overlap.html` (offline, 5 MB) into a folder.

        Raises:
            CircuitError: they can't be written.
        """
        with writing_folder(folder) as beside:
            OVERLAP.write(beside / "overlap.json", self.as_dict())
            write_text(beside / "overlap.md", self.markdown())
            chart_page(beside / "overlap.html", self.figure())
        return Path(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Overlap":
        """Read what `save` wrote.

        Args:
            path: the folder, or `overlap.json` in it.

        Raises:
            CircuitError: the file is missing, cut short, or something else.
        """
        return load_record(path, OVERLAP, cls)


RATIOS = ("jaccard", "jaccard_expected", "unit_jaccard", "unit_jaccard_expected")


def shared_circuit(circuits: Mapping[str, Circuit], share: float = 1.0) -> Circuit:
    """The edges that at least this share of some circuits have, as a circuit.

    An edge's (or unit's) score is the mean of its scores in the circuits that have it.

    Args:
        circuits: one or more, by name.
        share: of the circuits, above 0 and at most 1; 1 is every circuit.

    Raises:
        CircuitError: `share` is out of range, or the circuits are of models with different edges.
    """
    _, config, qkv = checked(circuits)
    if isinstance(share, str) or not 0 < share <= 1:
        raise CircuitError(f"share is {share!r}, expected a number above 0 and at most 1.")
    several = list(circuits.values())
    counts: dict[str, int] = {}
    scores: dict[str, list[float]] = {}
    for circuit in several:
        for edge in circuit.edges:
            counts[edge] = counts.get(edge, 0) + 1
        for edge, score in circuit.scores.items():
            scores.setdefault(edge, []).append(score)
    # Up to rounding: 0.3 of 10 circuits are 3, though 0.3 · 10 may come out a little above.
    needed = math.ceil(share * len(several) - 1e-9)
    kept = [edge for edge, count in counts.items() if count >= needed]
    means = {edge: math.fsum(known) / len(known) for edge, known in scores.items()}
    origin = Provenance(
        method=", ".join(dict.fromkeys(circuit.provenance.method for circuit in several)),
        selection=f"in at least {needed} of {len(several)} circuits",
        **agreed([circuit.provenance for circuit in several]),
    )
    return Circuit(config, kept, qkv=qkv, scores=means, provenance=origin)


def checked(circuits: object) -> tuple[tuple[str, ...], Any, Any]:
    """The names of circuits that can be compared, and the shape and q/k/v of the first.

    Raises:
        CircuitError: they are no circuits, none, or of models with different edges.
    """
    if not isinstance(circuits, Mapping) or not circuits:
        raise CircuitError(
            "expected one or more circuits by name, such as {'cat': circuit, 'dog': circuit}, got "
            f"{'none' if isinstance(circuits, Mapping) else type(circuits).__name__}."
        )
    wrong = [f"{n!r} is a {type(c).__name__}" for n, c in circuits.items() if not _fits(n, c)]
    if wrong:
        raise CircuitError(f"expected a circuitvit.Circuit by name: {'; '.join(wrong[:5])}.")
    first = next(iter(circuits.values()))
    others = [
        name
        for name, circuit in circuits.items()
        if circuit.qkv != first.qkv or not same_edge_set(circuit.config, first.config)
    ]
    if others:
        raise CircuitError(
            f"{', '.join(map(repr, others[:5]))} and {next(iter(circuits))!r} belong to ViTs with "
            "different edges, so they can't be compared. Find all on models of one shape, with the "
            "same qkv."
        )
    return tuple(circuits), first.config, first.qkv


def _fits(name: object, circuit: object) -> bool:
    return isinstance(name, str) and isinstance(circuit, Circuit)


def _likeness(
    names: tuple[str, str],
    edges: tuple[set[str], set[str]],
    units: tuple[set[str], set[str]],
    totals: tuple[int, int],
) -> Likeness:
    shared, units_shared = len(edges[0] & edges[1]), len(units[0] & units[1])
    sizes, unit_sizes = sorted(map(len, edges)), sorted(map(len, units))
    return Likeness(
        *names,
        edges_shared=shared,
        edges_expected=sizes[0] * sizes[1] / totals[0],
        jaccard=_jaccard(shared, *sizes),
        jaccard_expected=expected_jaccard(*sizes, totals[0]),
        units_shared=units_shared,
        unit_jaccard=_jaccard(units_shared, *unit_sizes),
        unit_jaccard_expected=expected_jaccard(*unit_sizes, totals[1]),
    )


def _jaccard(shared: int, one: int, other: int) -> float:
    """Shared over either; two empty sets are equal, so 1."""
    return shared / (one + other - shared) if one + other else 1.0


@lru_cache(maxsize=8192)
def expected_jaccard(one: int, other: int, total: int) -> float:
    """The mean Jaccard index of two random subsets of these sizes, exactly.

    What they share has the hypergeometric distribution.

    Args:
        one: size of the first.
        other: size of the second.
        total: of how many both are drawn; all subsets of a size are equally likely.
    """
    if one + other == 0:
        return 1.0
    shared = np.arange(max(0, one + other - total), min(one, other) + 1)
    logs = _log_factorials(total)
    log_chance = (
        logs[one] - logs[shared] - logs[one - shared]
        + logs[total - one] - logs[other - shared] - logs[total - one - other + shared]
        - logs[total] + logs[other] + logs[total - other]
    )  # fmt: skip
    return float(np.exp(log_chance) @ (shared / (one + other - shared)))


@lru_cache(maxsize=4)
def _log_factorials(most: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
