"""Scores of edges, nodes, blocks or neurons, and the circuits that can be chosen from them."""

import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from circuitvit.charts.tables import html_table
from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, in_short
from circuitvit.escaping import escape
from circuitvit.files.records import SCORES
from circuitvit.files.restoring import load_record, naming
from circuitvit.graph.circuit import Circuit, Provenance, agreed, edges_among
from circuitvit.graph.edge_graph import (
    Qkv,
    edge_count,
    edge_names_of,
    edges_of,
    node_named,
    units_of,
)

SHOWN = 12
"""Scores that a notebook shows."""
Positions = Literal["class/patch"]
"""Tokens before the first patch, and patch tokens, scored apart."""


class EdgeScores(Mapping[str, float]):
    """The score of every edge (or node, block or neuron), in the pinned order.

    Positive means that removing it hurts. Ties fall by the pinned order everywhere.

    Args:
        config: the shape of the ViT.
        values: a score for each name of the level: `embed->m0`; `a0.h1` or `m0`; `block0`; `m0.n7`;
            with positions `embed->m0@class` and `embed->m0@patch`.
        qkv: granularity of the heads' readers.
        provenance: how they were computed; its `level` says what the names are.
        positions: which tokens were scored apart, if any.

    Raises:
        CircuitError: a score is not finite.
    """

    def __init__(
        self,
        config: ViTConfig,
        values: Mapping[str, float],
        *,
        qkv: Qkv,
        provenance: Provenance,
        positions: Positions | None = None,
    ) -> None:
        count = count_at(config, provenance.level, qkv, positions)
        names = names_at(config, provenance.level, qkv, positions) if len(values) == count else None
        if names is None or set(names) != set(values):
            raise CircuitError(
                f"got {len(values)} scores, expected one for each of the {count} names of "
                f"level={in_short(provenance.level, most=60)} in a ViT of this shape."
            )
        self.config = config
        self.positions: Positions | None = positions
        self.qkv: Qkv = qkv
        self.provenance = provenance
        self._values = {name: float(values[name]) for name in names}
        bad = [name for name, value in self._values.items() if not math.isfinite(value)]
        if bad:
            raise CircuitError(
                f"{len(bad)} scores are NaN or infinite, such as that of {bad[0]}; the weights, "
                "the images or the metric are too large."
            )

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        apart = f", {self.positions}" if self.positions else ""
        return f"EdgeScores({len(self)} {self.provenance.level}s{apart}, {self.provenance.method})"

    def _repr_html_(self) -> str:
        what = self.provenance.level
        best = self.ranked()[:SHOWN]
        rows = [[what, "score"], *([name, f"{self[name]:+z.3g}"] for name in best)]
        few = f"the {SHOWN} largest by size of {len(self):,}" if len(self) > SHOWN else "all"
        return f"<p>{escape(f'{self!r}: {few}')}</p>{html_table(rows)}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the scores as one JSON file with a checksum, and return its path.

        Raises:
            CircuitError: the file can't be written.
        """
        body = {
            "config": self.config.as_dict(),
            "qkv": self.qkv,
            "positions": self.positions,
            "provenance": self.provenance.as_dict(),
            "scores": self._values,
        }
        return SCORES.write(path, body)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EdgeScores":
        """Read scores that `save` wrote.

        Raises:
            CircuitError: the file is missing, cut short, altered, or something else.
        """
        file = load_record(path, SCORES, _File)
        with naming(path, SCORES):
            return cls(
                file.config, file.scores, qkv=file.qkv, provenance=file.provenance,
                positions=file.positions,
            )  # fmt: skip

    def ranked(self, *, signed: bool = False) -> tuple[str, ...]:
        """The names, best first: by |score|, or by score itself if `signed`."""
        return tuple(sorted(self, key=lambda name: -self._key(name, signed)))

    def _key(self, name: str, signed: bool) -> float:
        return self._values[name] if signed else abs(self._values[name])

    @classmethod
    def ensemble(cls, several: Sequence["EdgeScores"]) -> "EdgeScores":
        """The mean of several scores' signed ranks, so that their scales don't matter.

        In each, names are ranked by |score| (those that tie share the mean of their ranks), the
        rank is divided by the number of names, and takes the sign of the score; 0 stays 0.

        Raises:
            CircuitError: none is given, or they score different things.
        """
        several = list(several)
        if not several or not all(isinstance(scores, cls) for scores in several):
            raise CircuitError("an ensemble takes a list of one or more EdgeScores, as eap gives.")
        first = several[0]
        if any(tuple(scores) != tuple(first) for scores in several):
            kinds = ", ".join(map(repr, several))
            raise CircuitError(
                f"these scores are of different things ({kinds}), so they can't be combined. Take "
                "models of one shape, with the same level, qkv and positions."
            )
        ranks = [_signed_ranks(scores) for scores in several]
        values = {name: math.fsum(rank[name] for rank in ranks) / len(ranks) for name in first}
        return cls(
            first.config, values, qkv=first.qkv, positions=first.positions,
            provenance=_common([scores.provenance for scores in several]),
        )  # fmt: skip

    def over_positions(self) -> "EdgeScores":
        """The scores of all tokens together: class token and patches added up."""
        if self.positions is None:
            return self
        kinds = self.positions.split("/")
        names = names_at(self.config, self.provenance.level, self.qkv)
        return EdgeScores(
            self.config,
            {name: sum(self[f"{name}@{kind}"] for kind in kinds) for name in names},
            qkv=self.qkv,
            provenance=self.provenance,
        )

    def weakest_neurons(self, n: int, *, signed: bool = False) -> dict[int, list[int]]:
        """The `n` neurons that score least by size (or by sign), by block, for `prune_mlp`.

        Raises:
            CircuitError: there are fewer than `n`, or the scores are not of neurons.
        """
        if self.provenance.level != "neuron":
            raise CircuitError(
                f"weakest_neurons needs scores at level='neuron', these are of "
                f"{self.provenance.level}s."
            )
        self._check_count(n)
        chosen: dict[int, list[int]] = {}
        for name in self.ranked(signed=signed)[len(self) - n :]:
            unit, neuron = name.split(".n")
            chosen.setdefault(int(unit[1:]), []).append(int(neuron))
        return {block: sorted(chosen[block]) for block in sorted(chosen)}

    def top(self, n: int, *, signed: bool = False) -> Circuit:
        """The circuit of exactly `n` edges that score best (at node or block level: `n` of those).

        `circuit.scores` has what its edges scored, or at node level what its units scored.

        Raises:
            CircuitError: there are fewer than `n`.
        """
        self._check_choosable()
        self._check_count(n)
        return self._circuit(self.ranked(signed=signed)[:n], f"top {n}", signed)

    def above(self, threshold: float, *, signed: bool = False) -> Circuit:
        """The circuit of the edges whose |score| (or score, if `signed`) exceeds the threshold."""
        self._check_choosable()
        threshold = real(threshold, "threshold")
        if threshold != threshold:
            raise CircuitError("threshold is NaN, expected a number.")
        names = [name for name in self if self._key(name, signed) > threshold]
        return self._circuit(names, f"above {threshold:zg}", signed)

    def greedy(self, n: int, *, signed: bool = False) -> Circuit:
        """The circuit of `n` edges grown backwards from `logits`, so that none is a dead end.

        The best edge into a node that is already in the circuit comes next (Hanna et al. 2024).

        Raises:
            CircuitError: there are fewer than `n` edges, or the scores are not of edges.
        """
        self._check_choosable()
        if self.provenance.level != "edge":
            raise CircuitError("greedy needs scores at level='edge'; use top(n) for nodes.")
        self._check_count(n)
        into: dict[str, list[tuple[float, int, str, str]]] = {}
        for place, edge in enumerate(edges_of(self.config, self.qkv)):
            item = (-self._key(edge.name, signed), place, edge.name, edge.writer)
            into.setdefault(node_named(edge.reader).unit, []).append(item)
        heap, seen, names = into["logits"], {"embed", "logits"}, []
        heapq.heapify(heap)
        while len(names) < n:
            *_, name, writer = heapq.heappop(heap)
            names.append(name)
            if writer not in seen:
                seen.add(writer)
                for item in into[writer]:
                    heapq.heappush(heap, item)
        return self._circuit(names, f"greedy {n}", signed)

    def _check_choosable(self) -> None:
        if self.positions is not None:
            raise CircuitError(
                "a circuit keeps an edge at all tokens or at none, and these scores have them "
                "apart. Choose from scores.over_positions(), which adds them up."
            )
        if self.provenance.level == "neuron":
            raise CircuitError(
                "a circuit has no single neurons. Use prune_mlp(vit, scores.weakest_neurons(n)), "
                "or score at level='edge', 'node' or 'block'."
            )

    def _check_count(self, n: int) -> None:
        if not 0 <= whole(n, "n") <= len(self):
            what, most = self.provenance.level, len(self)
            raise CircuitError(f"asked for {n} {what}s, expected 0 to {most}: there are {most}.")

    def _circuit(self, names: Iterable[str], selection: str, signed: bool) -> Circuit:
        how = f"{selection} by {'score' if signed else '|score|'}"
        origin, edges = replace(self.provenance, selection=how), tuple(names)
        if origin.level != "edge":
            edges = edges_among(self.config, units_at(self.config, origin.level, edges), self.qkv)
        return Circuit(self.config, edges, qkv=self.qkv, scores=self._values, provenance=origin)


@dataclass(frozen=True)
class _File:
    """The fields of a file of scores."""

    config: ViTConfig
    qkv: Qkv
    positions: Positions | None
    provenance: Provenance
    scores: Mapping[str, float]


def _common(origins: Sequence[Provenance]) -> Provenance:
    """The fields that several origins share; fields that differ are at their defaults."""
    plain = Provenance()
    differing = {
        item.name: getattr(plain, item.name)
        for item in fields(Provenance)
        if any(getattr(o, item.name) != getattr(origins[0], item.name) for o in origins)
    }
    method = f"ensemble of {', '.join(origin.method for origin in origins)}"
    return replace(origins[0], **(differing | agreed(origins) | {"method": method}))


def _signed_ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """Ranks by size from 1/count to 1, with the sign of the score; 0 for 0."""
    ordered, ranks = sorted(scores, key=lambda name: abs(scores[name])), {}
    place = 0
    for size, tied in groupby(ordered, key=lambda name: abs(scores[name])):
        names = list(tied)
        rank = (place + (len(names) + 1) / 2) / len(ordered) if size else 0.0
        ranks |= {name: math.copysign(rank, scores[name]) for name in names}
        place += len(names)
    return ranks


def count_at(config: ViTConfig, level: str, qkv: Qkv, positions: str | None = None) -> int:
    """The number of names of `names_at`, without making them.

    Raises:
        CircuitError: there are too many edges.
    """
    each = 1 if positions is None else len(positions.split("/"))
    if level == "edge":
        return each * edge_count(config, qkv)
    if level == "neuron":
        return each * sum(config.mlp_width)
    if level == "node":
        return each * (sum(config.heads) + sum(map(bool, config.mlp_width)))
    return each * config.depth


def names_at(
    config: ViTConfig, level: str, qkv: Qkv, positions: str | None = None
) -> tuple[str, ...]:
    """The names scored or tried at a level, in the pinned (reverse topological) order.

    Neurons come by block from the last, in ascending order. With positions each name comes twice,
    first for the class token and then for the patches.
    """
    if positions is not None:
        names = names_at(config, level, qkv)
        return tuple(f"{name}@{kind}" for name in names for kind in positions.split("/"))
    if level == "edge":
        return edge_names_of(config, qkv)
    if level == "node":
        return tuple(reversed(units_of(config)))
    blocks = tuple(reversed(range(config.depth)))
    if level == "neuron":
        return tuple(f"m{b}.n{neuron}" for b in blocks for neuron in range(config.mlp_width[b]))
    return tuple(f"block{block}" for block in blocks)


def units_at(config: ViTConfig, level: str, names: Iterable[str]) -> tuple[str, ...]:
    """The heads and MLPs that some nodes or blocks consist of, in forward order."""
    chosen = set(names)
    if level == "node":
        return tuple(name for name in units_of(config) if name in chosen)
    blocks = (f"block{node_named(name).block}" for name in units_of(config))
    return tuple(n for n, b in zip(units_of(config), blocks, strict=True) if b in chosen)
