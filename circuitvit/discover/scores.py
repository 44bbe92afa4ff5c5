"""Scores of edges, nodes or blocks, and the circuits that can be chosen from them."""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from circuitvit.circuit import Circuit, Provenance, edges_among
from circuitvit.config import ViTConfig
from circuitvit.edge_graph import Qkv, edge_names_of, edges_of, node_named, units_of
from circuitvit.errors import CircuitError


class EdgeScores(Mapping[str, float]):
    """What every edge (or node, or block) scored, in the pinned order.

    Positive means that removing it hurts. Ties fall by the pinned order everywhere.

    Args:
        config: the shape of the ViT.
        values: a score for each name of the level: `embed->m0`; `a0.h1` or `m0`; `block0`.
        qkv: granularity of the heads' readers.
        provenance: how they were computed; its `level` says what the names are.

    Raises:
        CircuitError: a score is not finite.
    """

    def __init__(
        self, config: ViTConfig, values: Mapping[str, float], *, qkv: Qkv, provenance: Provenance
    ) -> None:
        names = names_at(config, provenance.level, qkv)
        assert set(names) == set(values)
        self.config = config
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
        return f"EdgeScores({len(self)} {self.provenance.level}s, {self.provenance.method})"

    def ranked(self, *, signed: bool = False) -> tuple[str, ...]:
        """The names, best first: by |score|, or by score itself if `signed`."""
        return tuple(sorted(self, key=lambda name: -self._key(name, signed)))

    def _key(self, name: str, signed: bool) -> float:
        return self._values[name] if signed else abs(self._values[name])

    def top(self, n: int, *, signed: bool = False) -> Circuit:
        """The circuit of exactly `n` edges that score best (at node or block level: `n` of those).

        Raises:
            CircuitError: there are fewer than `n`.
        """
        self._check_count(n)
        return self._circuit(self.ranked(signed=signed)[:n], f"top {n}", signed)

    def above(self, threshold: float, *, signed: bool = False) -> Circuit:
        """The circuit of the edges whose |score| (or score, if `signed`) exceeds the threshold."""
        names = [name for name in self if self._key(name, signed) > threshold]
        return self._circuit(names, f"above {threshold:g}", signed)

    def greedy(self, n: int, *, signed: bool = False) -> Circuit:
        """The circuit of `n` edges grown backwards from `logits`, so that none is a dead end.

        The best edge into a node that is already in the circuit comes next (Hanna et al. 2024).

        Raises:
            CircuitError: there are fewer than `n` edges, or the scores are not of edges.
        """
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

    def _check_count(self, n: int) -> None:
        if not 0 <= n <= len(self):
            raise CircuitError(f"asked for {n} {self.provenance.level}s, there are {len(self)}.")

    def _circuit(self, names: Iterable[str], selection: str, signed: bool) -> Circuit:
        how = f"{selection} by {'score' if signed else '|score|'}"
        origin, scores = replace(self.provenance, selection=how), None
        if origin.level == "edge":
            edges, scores = tuple(names), self._values
        else:
            edges = edges_among(self.config, units_at(self.config, origin.level, names), self.qkv)
        return Circuit(self.config, edges, qkv=self.qkv, scores=scores, provenance=origin)


def names_at(config: ViTConfig, level: str, qkv: Qkv) -> tuple[str, ...]:
    """What is scored or tried at a level, in the pinned (reverse topological) order."""
    if level == "edge":
        return edge_names_of(config, qkv)
    if level == "node":
        return tuple(reversed(units_of(config)))
    return tuple(f"block{block}" for block in reversed(range(config.depth)))


def units_at(config: ViTConfig, level: str, names: Iterable[str]) -> tuple[str, ...]:
    """The heads and MLPs that some nodes or blocks consist of, in forward order."""
    chosen = set(names)
    if level == "node":
        return tuple(name for name in units_of(config) if name in chosen)
    blocks = (f"block{node_named(name).block}" for name in units_of(config))
    return tuple(n for n, b in zip(units_of(config), blocks, strict=True) if b in chosen)
