"""Reads a networkx graph into what is drawn: units with a place, readers, edges with a curve.

A node of the graph carries `node`, an object with `name`, `kind` (embed, head, mlp or logits),
`block`, `head`, `part` and `unit`; an edge may carry `score`, a float, and `dangling`, True if it
carries nothing. `graph.graph["units"]` may
list such objects for all units of the model, so that those outside the graph appear too.
Positions are fixed: depth runs from left to right, heads upwards, MLPs have a row of their own.

Edges are drawn as a few kinds of stroke, never one trace an edge: colour shows the sign of the
score, width and opacity the rank of |score| among all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from circuitvit.errors import CircuitError

KINDS = ("embed", "head", "mlp", "logits")
MLP_ROW = -1.6
_PORTS = {"q": 0.1, "k": 0.0, "v": -0.1}
_POINTS_IN_ALL = 230_000


@dataclass(frozen=True)
class Unit:
    """A dot: a head, an MLP, `embed` or `logits`.

    Attributes:
        name: its name.
        kind: `embed`, `head`, `mlp` or `logits`.
        block: its block; None for `embed` and `logits`.
        head: its head in the block; None for all but heads.
        x: its depth; a block is two columns wide.
        y: its row.
        present: whether it is part of the graph, not only of the model.
    """

    name: str
    kind: str
    block: int | None
    head: int | None
    x: float
    y: float
    present: bool


@dataclass(frozen=True)
class Reader:
    """The reader at an edge's end; it is drawn at the dot of its unit."""

    name: str
    unit: int
    part: str


@dataclass(frozen=True)
class Drawing:
    """Everything that the figure, the page and the notebook's picture are drawn from.

    Attributes:
        units: the dots, in the graph's order.
        readers: the readers, in the order in which edges meet them.
        writer: each edge's writer, an index into `units`; int32 [edge].
        reader: each edge's reader, an index into `readers`; int32 [edge].
        score: each edge's score, NaN where it has none; float64 [edge].
        dangling: whether each edge carries nothing; bool [edge].
        controls: each edge's four Bezier control points; float64 [edge, 4, 2].
    """

    units: tuple[Unit, ...]
    readers: tuple[Reader, ...]
    writer: np.ndarray
    reader: np.ndarray
    score: np.ndarray
    dangling: np.ndarray
    controls: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Each edge's |score|, by which edges rank; 0 for those without and those that dangle."""
        return np.where(self.dangling, 0.0, np.abs(np.nan_to_num(self.score, nan=0.0)))

    @property
    def reader_unit(self) -> np.ndarray:
        """The unit of each edge's reader; int32 [edge]."""
        owners = np.array([reader.unit for reader in self.readers], np.int32)
        return owners[self.reader] if len(owners) else self.reader

    @property
    def blocks(self) -> int:
        """Number of blocks that have a unit."""
        return 1 + max((u.block for u in self.units if u.block is not None), default=-1)

    @property
    def heads(self) -> int:
        """Number of rows of heads."""
        return 1 + max((u.head for u in self.units if u.head is not None), default=-1)

    def points_per_edge(self) -> int:
        """Points of a curve: many for a small graph, few for one of 30,000 edges."""
        return int(np.clip(_POINTS_IN_ALL // max(len(self.score), 1), 3, 24))

    def curves(self) -> np.ndarray:
        """The curves as points; float64 [edge, point, 2]."""
        t = np.linspace(0.0, 1.0, self.points_per_edge())
        weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
        return np.einsum("pc,ecd->epd", weights, self.controls)

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest and largest x, then y, with room for the dots."""
        dots = np.array([(unit.x, unit.y) for unit in self.units]).reshape(-1, 2)
        points = np.concatenate([dots, self.curves().reshape(-1, 2), [(0.0, MLP_ROW)]])
        (left, low), (right, high) = points.min(0).tolist(), points.max(0).tolist()
        aside = max(1.0, 0.11 * (right - left))  # where `embed` and `logits` are written
        return left - aside, right + aside, low - 0.5, high + 0.5


def read_graph(graph: nx.DiGraph) -> Drawing:
    """Place every unit and every edge of a graph.

    Raises:
        CircuitError: a node does not say what it is, or is of no known kind.
    """
    nodes = {name: _described(name, data) for name, data in graph.nodes(data=True)}
    units = _placed(nodes.values(), graph.graph.get("units", ()))
    index = {unit.name: place for place, unit in enumerate(units)}
    readers: dict[str, Reader] = {}
    for _, name in graph.edges:
        node = nodes[name]
        part = node.part or ("joint" if node.kind == "head" else node.kind)
        readers.setdefault(name, Reader(str(node.name), index[node.unit], part))
    order = {name: place for place, name in enumerate(readers)}
    rows = [
        (index[nodes[writer].unit], order[reader], np.nan if score is None else float(score))
        for writer, reader, score in graph.edges(data="score")
    ]
    table = np.array(rows, np.float64).reshape(-1, 3)
    writer, reader = table[:, 0].astype(np.int32), table[:, 1].astype(np.int32)
    listed = tuple(readers.values())
    controls = _controls(units, listed, writer, reader)
    dangling = np.array([bool(idle) for *_, idle in graph.edges(data="dangling")], bool)
    return Drawing(units, listed, writer, reader, table[:, 2], dangling, controls)


def _described(name: object, data: dict[str, Any]) -> Any:
    if "node" not in data:
        raise CircuitError(
            f"node {name!r} has no attribute 'node', so it can't be drawn. Draw a graph that "
            "edge_graph() or Circuit.graph() made."
        )
    if data["node"].kind not in KINDS:
        raise CircuitError(
            f"node {name!r} is of kind {data['node'].kind!r}, expected one of {KINDS}."
        )
    return data["node"]


def _placed(nodes: Iterable[Any], of_the_model: Iterable[Any]) -> tuple[Unit, ...]:
    """The units of the model and of the graph, each once, with their places."""
    nodes = list(nodes)
    present = {node.unit for node in nodes}
    described = {node.unit: node for node in [*of_the_model, *nodes]}
    heads = max((n.head for n in described.values() if n.head is not None), default=0)
    depth = 1 + max((n.block for n in described.values() if n.block is not None), default=-1)
    return tuple(
        Unit(
            name=str(name),
            kind=node.kind,
            block=node.block,
            head=node.head,
            x=_column(node, depth),
            y=_row(node, heads / 2),
            present=name in present,
        )
        for name, node in described.items()
    )


def _column(node: Any, depth: int) -> float:
    if node.block is None:
        return 0.0 if node.kind == "embed" else 2.0 * depth + 1.0
    return 2.0 * node.block + (1.0 if node.kind == "head" else 2.0)


def _row(node: Any, middle: float) -> float:
    if node.kind == "head":
        return float(node.head)
    return MLP_ROW if node.kind == "mlp" else middle


def _controls(
    units: tuple[Unit, ...], readers: tuple[Reader, ...], writer: np.ndarray, reader: np.ndarray
) -> np.ndarray:
    """Bezier control points that lead every edge around the dots between its ends.

    Edges among MLPs hang below their row, edges along a row of heads stand above it, all others
    are S-curves with a bow, since a straight a0.h0->a2.h2 would run through a1.h1.
    """
    dots = np.array([(unit.x, unit.y) for unit in units]).reshape(-1, 2)
    owner = np.array([item.unit for item in readers], np.int64)
    ports = np.array([_PORTS.get(item.part, 0.0) for item in readers])
    start = dots[writer]
    end = dots[owner[reader]] if len(readers) else start
    port = ports[reader] if len(readers) else np.zeros(0)
    span = np.abs(end[:, 0] - start[:, 0])
    level = start[:, 1] == end[:, 1]
    below = level & (start[:, 1] == MLP_ROW)
    bow = np.where(below, -0.55, np.where(level, 0.4, 0.18)) * np.sqrt(span) + 1.5 * port
    reach = np.where(level, 0.25 * span, np.minimum(0.45 * span, 1.2))
    end = end + np.stack([np.zeros_like(port), port], axis=1)
    lift = np.stack([reach, bow], axis=1)
    return np.stack([start, start + lift, end + lift * (-1, 1), end], axis=1)


POSITIVE = "#d9480f"
NEGATIVE = "#1c6fd1"
NEUTRAL = "#7b8794"
IDLE = "#c3ccd5"
LEVELS = 8


@dataclass(frozen=True)
class Stroke:
    """The stroke of a group of edges.

    Attributes:
        name: what a legend would say.
        color: warm for positive scores, cool for negative ones, grey for none and zero.
        width: in pixels.
        opacity: 0 to 1.
        edges: which edges, as indices; int64 [edge].
    """

    name: str
    color: str
    width: float
    opacity: float
    edges: np.ndarray


def strokes(score: np.ndarray, dangling: np.ndarray) -> tuple[Stroke, ...]:
    """Sort edges into at most 2·LEVELS + 2 strokes, the faintest first, so strong ones lie on top.

    Edges that dangle carry nothing, whatever they once scored: they are the first stroke.

    Levels are quantiles of |score| over all scored edges. In a large graph the upper levels become
    narrower, since a tenth of 30,000 edges would cover everything.

    Args:
        score: float64 [edge]; NaN where an edge has no score.
        dangling: bool [edge].
    """
    count = max(len(score), 1)
    scored = (np.nan_to_num(score, nan=0.0) != 0) & ~dangling
    size = np.abs(score[scored])
    share = np.zeros(len(score))
    share[scored] = np.searchsorted(np.sort(size), size, side="right") / max(len(size), 1)
    squeeze = 1 + np.clip(np.log10(count / 100), 0, 2.5)
    cuts = 1 - (1 - np.arange(1, LEVELS) / LEVELS) ** squeeze
    level = np.searchsorted(cuts, share, side="left")
    faint = min(0.6, 12 / count**0.5)
    idle, unscored = np.flatnonzero(dangling), np.flatnonzero(~scored & ~dangling)
    found = [Stroke("dangling: carries nothing", IDLE, 1.2, 0.9, idle)] if len(idle) else []
    found += [Stroke("no score, or zero", NEUTRAL, 1.2, faint, unscored)] if len(unscored) else []
    for step in range(LEVELS):
        for sign, color in ((-1, NEGATIVE), (1, POSITIVE)):
            inside = np.flatnonzero(scored & (level == step) & (np.sign(score) == sign))
            if len(inside):
                found.append(_stroke(score, inside, step, color, squeeze))
    return tuple(found)


def _stroke(score: np.ndarray, inside: np.ndarray, step: int, color: str, squeeze: float) -> Stroke:
    share, count = (step + 1) / LEVELS, len(score)
    thick = float(np.clip(4.8 - 0.8 * np.log10(count), 1.4, 3.6))
    faint = min(0.35, 6 / count**0.5)
    sign = "positive" if color == POSITIVE else "negative"
    least = np.abs(score[inside]).min()
    return Stroke(
        name=f"{sign}, |score| from {least:z.3g}",
        color=color,
        width=round(thick * (0.2 + 0.8 * share**2), 2),
        opacity=round(float(faint + (0.92 - faint) * share ** (2 * squeeze)), 3),
        edges=inside,
    )
