"""The graph of a ViT's edges: who writes to the residual stream, and who reads it.

Names, order and counts are pinned: `embed`, then per block the heads `a{l}.h{h}` and the MLP
`m{l}` write; `a{l}.h{h}.q|k|v`, `m{l}` and `logits` read. Every reader reads every earlier writer.
The step from a reader to its own writer is not an edge. Knows no torch and no weights.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast, get_args

import networkx as nx

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError

Qkv = Literal["split", "joint"]
NodeKind = Literal["embed", "head", "mlp", "logits"]
ORDER = "reverse-topological"
MOST_EDGES = 2**26
"""A graph with more edges is refused; a ViT-22B has 8 million with split q, k and v."""

_NAME = re.compile(r"a(?P<ablock>\d+)\.h(?P<head>\d+)(?:\.(?P<part>[qkv]))?|m(?P<mblock>\d+)")


@dataclass(frozen=True)
class Node:
    """A writer, a reader, or (an MLP, a head with joint q/k/v) both.

    Attributes:
        name: `embed`, `a2.h1`, `a2.h1.q`, `m3` or `logits`.
        kind: what the node is part of.
        block: its block; None for `embed` and `logits`.
        head: its head in the block, for heads.
        part: `q`, `k` or `v` for a reader of a split head.
    """

    name: str
    kind: NodeKind
    block: int | None = None
    head: int | None = None
    part: Literal["q", "k", "v"] | None = None

    @property
    def unit(self) -> str:
        """The name of the unit it belongs to: `a2.h1.q` belongs to `a2.h1`."""
        return self.name.removesuffix(f".{self.part}") if self.part else self.name

    @property
    def block_index(self) -> int:
        """The block of a head or an MLP."""
        assert self.block is not None
        return self.block

    @property
    def head_index(self) -> int:
        """The head of a head or one of its readers."""
        assert self.head is not None
        return self.head


@dataclass(frozen=True)
class Edge:
    """An edge: the write of `writer`, as `reader` reads it."""

    writer: str
    reader: str

    @property
    def name(self) -> str:
        """The pinned name, such as `embed->a0.h3.q`."""
        return f"{self.writer}->{self.reader}"


@lru_cache(maxsize=4096)
def node_named(name: str) -> Node:
    """Read a node's name.

    Raises:
        CircuitError: it is not the name of a writer or a reader.
    """
    if name == "embed" or name == "logits":
        return Node(name, name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise CircuitError(
            f"{name!r} names no writer or reader. Names are 'embed', 'a2.h1', 'a2.h1.q', 'm3' "
            "and 'logits'."
        )
    if match["mblock"] is not None:
        return Node(name, "mlp", int(match["mblock"]))
    part = cast(Literal["q", "k", "v"] | None, match["part"])
    return Node(name, "head", int(match["ablock"]), int(match["head"]), part)


def units_of(config: ViTConfig) -> tuple[str, ...]:
    """The heads and MLPs, in forward order."""
    return writers_of(config)[1:]


@lru_cache(maxsize=64)
def writers_of(config: ViTConfig) -> tuple[str, ...]:
    """The writers, in forward order; a writer's place in it is its index everywhere."""
    names = ["embed"]
    for block in range(config.depth):
        names += [f"a{block}.h{head}" for head in range(config.heads[block])]
        names += [f"m{block}"] if config.mlp_width[block] else []
    return tuple(names)


@lru_cache(maxsize=64)
def places_of(config: ViTConfig) -> dict[str, int]:
    """The index of each writer in `writers_of`."""
    return {name: place for place, name in enumerate(writers_of(config))}


@lru_cache(maxsize=64)
def writers_before(config: ViTConfig) -> dict[str, int]:
    """The number of writers before each unit and `logits`; equal for the heads of a block."""
    counts: dict[str, int] = {}
    count = 1
    for block in range(config.depth):
        for head in range(config.heads[block]):
            counts[f"a{block}.h{head}"] = count
        count += config.heads[block]
        if config.mlp_width[block]:
            counts[f"m{block}"] = count
            count += 1
    counts["logits"] = count
    return counts


@lru_cache(maxsize=64)
def readers_of(config: ViTConfig, qkv: Qkv = "split") -> tuple[str, ...]:
    """The readers in the pinned order: `logits`, then block by block from the last.

    Within a block: the MLP, then the heads from the last to the first, each `v`, `k`, `q`.
    """
    _check_qkv(qkv)
    names = ["logits"]
    for block in reversed(range(config.depth)):
        names += [f"m{block}"] if config.mlp_width[block] else []
        for head in reversed(range(config.heads[block])):
            name = f"a{block}.h{head}"
            names += [name] if qkv == "joint" else [f"{name}.v", f"{name}.k", f"{name}.q"]
    return tuple(names)


def edge_count(config: ViTConfig, qkv: Qkv = "split") -> int:
    """The number of edges, by a formula, without making them.

    Raises:
        CircuitError: there are more than `MOST_EDGES`.
    """
    _check_qkv(qkv)
    readers, writers, count = 3 if qkv == "split" else 1, 1, 0
    for heads, mlp_width in zip(config.heads, config.mlp_width, strict=True):
        count += readers * heads * writers
        writers += heads
        if mlp_width:
            count += writers
            writers += 1
    count += writers
    if count > MOST_EDGES:
        raise CircuitError(
            f"a ViT of {config.depth} blocks with {sum(config.heads):,} heads has {count:,} edges "
            f"with qkv={qkv!r}, expected at most {MOST_EDGES:,}. Take a smaller model"
            + (", or qkv='joint'." if qkv == "split" else ".")
        )
    return count


def in_order(
    config: ViTConfig, names: Iterable[str], qkv: Qkv = "split"
) -> tuple[tuple[Edge, ...], tuple[str, ...]]:
    """The edges of some names in the pinned order, each once, and the names that no edge has.

    Names are read as `meant_by` has them.

    Takes time and memory for the names alone, not for every edge of the ViT.
    """
    edge_count(config, qkv)
    places, before = places_of(config), writers_before(config)
    readers = {name: place for place, name in enumerate(readers_of(config, qkv))}
    found, unknown = dict[tuple[int, int], Edge](), dict[str, None]()
    for given in names:
        for name in meant_by(str(given), qkv):
            writer, _, reader = name.partition("->")
            place = places.get(writer, len(places))
            if reader in readers and place < before[node_named(reader).unit]:
                found[readers[reader], -place] = Edge(writer, reader)
            else:
                unknown[given] = None
    return tuple(found[place] for place in sorted(found)), tuple(unknown)


def meant_by(name: str, qkv: Qkv = "split") -> tuple[str, ...]:
    """The edges that a name means.

    It is one, but a head that reads with split q, k and v means all three: `embed->a0.h1` is
    `embed->a0.h1.q`, `….k` and `….v`.
    """
    _, _, reader = name.partition("->")
    if qkv == "split" and reader.startswith("a") and reader[-1].isdigit():
        return tuple(f"{name}.{part}" for part in "qkv")
    return (name,)


@lru_cache(maxsize=64)
def edges_of(config: ViTConfig, qkv: Qkv = "split") -> tuple[Edge, ...]:
    """Every edge in the pinned order: reader by reader, for each the latest writer first."""
    edge_count(config, qkv)
    names, before = writers_of(config), writers_before(config)
    return tuple(
        Edge(writer, reader)
        for reader in readers_of(config, qkv)
        for writer in reversed(names[: before[node_named(reader).unit]])
    )


@lru_cache(maxsize=64)
def edge_names_of(config: ViTConfig, qkv: Qkv = "split") -> tuple[str, ...]:
    """The names of `edges_of`, in the same order."""
    return tuple(edge.name for edge in edges_of(config, qkv))


def same_edge_set(one: ViTConfig, other: ViTConfig) -> bool:
    """Whether two ViTs have the same writers and readers."""
    return writers_of(one) == writers_of(other) and one.depth == other.depth


def edges_among(config: ViTConfig, kept_units: Iterable[str], qkv: Qkv) -> tuple[str, ...]:
    """Every edge among some units, `embed` and `logits`."""
    inside = {"embed", "logits", *kept_units}
    return tuple(
        edge.name
        for edge in edges_of(config, qkv)
        if edge.writer in inside and node_named(edge.reader).unit in inside
    )


def edge_graph(config: ViTConfig, qkv: Qkv = "split") -> nx.DiGraph:
    """The full graph of a ViT of this shape.

    Args:
        config: the model's shape, `vit.config`.
        qkv: `"split"` gives every head three readers, `"joint"` one.

    Returns:
        A DiGraph over node names. Nodes carry a frozen `Node` as attribute `node`, edges a frozen
        `Edge` as attribute `edge`; both are in forward order, and `graph.graph` holds `qkv`.
    """
    return graph_of(edges_of(config, qkv), nodes=tuple(nodes_of(config, qkv)), qkv=qkv)


def graph_of(kept: tuple[Edge, ...], *, nodes: tuple[str, ...], qkv: Qkv) -> nx.DiGraph:
    """A DiGraph of some edges over some nodes, with the same attributes as `edge_graph`."""
    graph = nx.DiGraph(qkv=qkv)
    graph.add_nodes_from((name, {"node": node_named(name)}) for name in nodes)
    graph.add_edges_from((edge.writer, edge.reader, {"edge": edge}) for edge in reversed(kept))
    return graph


def nodes_of(config: ViTConfig, qkv: Qkv) -> Iterator[str]:
    """Every node, readers of a head before their writer."""
    for unit in writers_of(config):
        if qkv == "split" and node_named(unit).kind == "head":
            yield from (f"{unit}.{part}" for part in "qkv")
        yield unit
    yield "logits"


@dataclass(frozen=True)
class Link:
    """An edge as networkx's node-link layout has it."""

    OPTIONAL: ClassVar = frozenset({"score"})

    source: str
    target: str
    score: float | None = None

    @property
    def name(self) -> str:
        """The pinned name."""
        return Edge(self.source, self.target).name


@dataclass(frozen=True)
class Named:
    """A node as networkx's node-link layout has it."""

    id: str


@dataclass(frozen=True)
class NodeLinks:
    """A graph in networkx's node-link layout."""

    OPTIONAL: ClassVar = frozenset({"directed", "multigraph", "graph"})

    nodes: tuple[Named, ...]
    edges: tuple[Link, ...]
    directed: bool = True
    multigraph: bool = False
    graph: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a graph that a circuit isn't.

        Raises:
            CircuitError: it isn't directed, has an edge twice, or other nodes than its edges.
        """
        named, touched = [node.id for node in self.nodes], set[str]()
        for edge in self.edges:
            touched |= {edge.source, edge.target}
        found = {
            "it isn't directed": not self.directed or self.multigraph,
            "it has attributes of its own": bool(self.graph),
            "an edge is there twice": len({edge.name for edge in self.edges}) < len(self.edges),
            "its nodes aren't those of its edges": sorted(named) != sorted(touched),
        }
        wrong = [text for text, is_so in found.items() if is_so]
        if wrong:
            raise CircuitError(f"graph is no circuit: {'; '.join(wrong)}.")


def _check_qkv(qkv: str) -> None:
    if qkv not in get_args(Qkv):
        raise CircuitError(f"qkv is {qkv!r}, expected one of {get_args(Qkv)}.")


def shape_of_units(config: ViTConfig, units: Iterable[str], *, constants: bool) -> ViTConfig:
    """The shape of a ViT with only some heads and MLPs; no weights are needed.

    Args:
        config: the whole ViT's shape.
        units: what stays, such as `a0.h1` and `m3`.
        constants: whether removed units write constants, as under `mean`: what an emptied
            sub-layer wrote joins the constant of the last one before it that stays.
    """
    kept = set(units)
    heads = tuple(
        sum(f"a{block}.h{head}" in kept for head in range(count))
        for block, count in enumerate(config.heads)
    )
    widths = enumerate(config.mlp_width)
    mlps = tuple(width if f"m{block}" in kept else 0 for block, width in widths)
    left = replace(config, heads=heads, mlp_width=mlps)
    return _with_constants(config, left) if constants else left


def _with_constants(whole: ViTConfig, left: ViTConfig) -> ViTConfig:
    """The shape in which what removed units write is held by the sub-layers that stay."""
    held = {
        "attention": list(whole.attention_constant),
        "mlp": list(whole.mlp_constant),
        "bias": list(whole.output_bias),
    }
    holder = ("attention", 0) if whole.embed_norm else None  # None: the positions, at no cost
    for block in range(whole.depth):
        for kind, count, most in (
            ("attention", left.heads[block], whole.heads[block]),
            ("mlp", left.mlp_width[block], whole.mlp_width[block]),
        ):
            writes = count < most
            if count:
                holder = kind, block
            else:
                for own in ("attention", "bias") if kind == "attention" else ("mlp",):
                    writes |= held[own][block]
                    held[own][block] = False
            if writes and holder is not None:
                held[holder[0]][holder[1]] = True
    return replace(
        left,
        attention_constant=tuple(held["attention"]),
        mlp_constant=tuple(held["mlp"]),
        output_bias=tuple(held["bias"]),
    )
