"""A circuit: the kept edges of a ViT, and its file.

Knows no torch: a saved circuit can be read, compared and drawn anywhere. Running one is
`circuitvit.intervene.ablated_run`'s work, finding one `circuitvit.discover`'s.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import networkx as nx

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, printable
from circuitvit.explore import figure, notebook_html, page
from circuitvit.files.records import CIRCUIT
from circuitvit.files.restoring import load_record, naming
from circuitvit.graph.edge_graph import (
    ORDER,
    Edge,
    NodeLinks,
    Qkv,
    edge_count,
    edge_names_of,
    edges_among,
    graph_of,
    in_order,
    meant_by,
    node_named,
    nodes_of,
    same_edge_set,
    units_of,
    writers_of,
)

if TYPE_CHECKING:
    import circuitvit.charts.saved_figure


@dataclass(frozen=True)
class Provenance:
    """The provenance of a circuit: all that is needed to find it again.

    Attributes:
        method: `acdc`, `eap`, …, or `hand`.
        selection: how the edges were chosen from scores, such as `top 40 by |score|`.
        level: what was tried or scored: edges, nodes, blocks or neurons.
        ablation: what removed edges were replaced by; it restricts nothing later on.
        metric: the metric's name, or the name of the callable.
        order: the order in which readers and writers were tried, and in which ties fall.
        tau: the ACDC threshold.
        steps: interpolation steps of the gradient methods.
        seed: the seed, where anything was drawn.
        images: number of image pairs.
        evaluations: number of ablated runs that ACDC needed.
        divergence: the metric of the circuit minus that of the full model, on its own images.
        ties: edges whose ACDC decision lies within the numerical error of τ.
        model: fingerprint of the weights.
        data: fingerprint of the image pairs.
        pairs: the recipe of the pairs, for `Pairs.remake`; None if they were put together by hand.
        reference: fingerprint of the reference images.
        versions: versions of circuitvit and torch.
        ablations: those of the parts of a combination that differ in it; `ablation` is None then.
        metrics: likewise.
    """

    method: str = "hand"
    selection: str | None = None
    level: str = "edge"
    ablation: str | None = None
    metric: str | None = None
    order: str = ORDER
    tau: float | None = None
    steps: int | None = None
    seed: int | None = None
    images: int | None = None
    evaluations: int | None = None
    divergence: float | None = None
    ties: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    reference: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    pairs: Mapping[str, Any] | None = field(default=None, hash=False)
    ablations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    OPTIONAL: ClassVar[frozenset[str]]
    """Fields that a file may lack: they came one after the other."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; those that came later only where they say something."""
        told = asdict(self)
        for name in ("pairs", "ablations", "metrics"):
            if not told[name]:  # as files were before there was this field
                del told[name]
        return told

    @property
    def methods(self) -> frozenset[str]:
        """The methods that a combination was made of, or the one there is."""
        return frozenset(filter(None, _JOINTS.split(self.method)))

    def known(self, what: Literal["ablation", "metric"]) -> tuple[str, ...]:
        """The ablation or metric; several where parts differ, none where it is not known."""
        one: str | None = getattr(self, what)
        several: tuple[str, ...] = getattr(self, f"{what}s")
        return several if one is None else (one,)


_JOINTS = re.compile(r" [-|&^] |, |\bensemble of ")
"""What stands between the methods of combinations."""


def agreed(origins: Sequence[Provenance]) -> dict[str, Any]:
    """The ablation, metric and model that the parts of a combination share, as fields.

    A part whose ablation or metric is not known goes by the others; where they differ, all are
    named.
    """
    told: dict[str, Any] = {}
    for what in ("ablation", "metric"):
        names = sorted({name for origin in origins for name in origin.known(what)})
        alone = len(names) == 1
        told |= {what: names[0] if alone else None, f"{what}s": () if alone else tuple(names)}
    models = {origin.model for origin in origins}
    return told | {"model": models.pop() if len(models) == 1 else None}


Provenance.OPTIONAL = frozenset(field.name for field in fields(Provenance))


Ablation = Literal["patch", "zero", "mean"]
Level = Literal["edge", "node", "block"]


class Circuit:
    """The kept edges of a ViT of one shape.

    Circuits are immutable and compare by shape and edges. `a | b`, `a & b`, `a - b` and `a ^ b` are
    set operations on the edges; `a <= b` asks whether b has every edge of a.

    Args:
        config: the shape of the ViT.
        edges: names of the kept edges, in any order. With split q, k and v, a head as reader
            means all three, here and in `edge in circuit`: `embed->a0.h1`.
        qkv: granularity of the heads' readers.
        scores: what each kept edge scored, for drawing, or each unit (`a0.h1`, `m3`) that a kept
            edge leaves, for `compile` with a budget; others are left out.
        provenance: how it was found.

    Raises:
        CircuitError: an edge does not exist in a ViT of this shape.
    """

    def __init__(
        self,
        config: ViTConfig,
        edges: Iterable[str],
        *,
        qkv: Qkv = "split",
        scores: Mapping[str, float] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        if not isinstance(config, ViTConfig) or isinstance(edges, str):
            raise CircuitError(
                f"expected Circuit(vit.config, [edge names]), got a {type(config).__name__} and "
                f"{type(edges).__name__}."
            )
        ordered, unknown = in_order(config, edges, qkv)
        if unknown:
            names = ", ".join(map(printable, sorted(map(str, unknown))[:5]))
            last = writers_of(config)[-1]
            raise CircuitError(
                f"{len(unknown)} edges do not exist in this ViT ({names}). It has "
                f"{edge_count(config, qkv)} edges with qkv={qkv!r}, such as {last}->logits; "
                f"edge_graph(vit.config, {qkv!r}) lists them."
            )
        self.config = config
        self.qkv: Qkv = qkv
        self.edges: tuple[str, ...] = tuple(edge.name for edge in ordered)
        self._kept = frozenset(self.edges)
        _check_scores(scores or {}, qkv)
        writers = {name.partition("->")[0] for name in self.edges}
        scored = (*self.edges, *(name for name in reversed(units_of(config)) if name in writers))
        self.scores: Mapping[str, float] = MappingProxyType(
            {name: float(scores[name]) for name in scored if scores and name in scores}
        )
        self.provenance = provenance or Provenance()
        self._complete = True

    @classmethod
    def full(cls, config: ViTConfig, qkv: Qkv = "split") -> "Circuit":
        """The circuit that keeps every edge of a ViT of this shape, which is the model itself.

        Raises:
            CircuitError: the ViT has more edges than a computer holds, or `qkv` is unknown.
        """
        if not isinstance(config, ViTConfig):
            raise CircuitError(f"expected Circuit.full(vit.config), got a {type(config).__name__}.")
        return cls(config, edge_names_of(config, qkv), qkv=qkv)

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "_complete", False):
            raise AttributeError(f"circuits are immutable, so {name} can't be set; see keeping().")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"circuits are immutable, so {name} can't be removed.")

    def __getstate__(self) -> dict[str, Any]:
        # A read-only view can't be copied or sent to another process; the scores below it can.
        return vars(self) | {"scores": dict(self.scores)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, scores=MappingProxyType(state["scores"]))

    def __len__(self) -> int:
        return len(self.edges)

    def __iter__(self) -> Iterator[str]:
        return iter(self.edges)

    def __contains__(self, edge: object) -> bool:
        return isinstance(edge, str) and self._kept.issuperset(meant_by(edge, self.qkv))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and self.edges == other.edges
            and self.qkv == other.qkv
            and same_edge_set(self.config, other.config)
        )

    def __hash__(self) -> int:
        return hash((self.edges, self.qkv))

    def __repr__(self) -> str:
        total, dangling = edge_count(self.config, self.qkv), len(self.dangling())
        idle = f"{dangling} dangling, " if dangling else ""
        return f"Circuit({len(self)} of {total} edges, {idle}{self.provenance.method})"

    def _repr_html_(self) -> str:
        return notebook_html(self.graph(), title=repr(self))

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, set(self.edges) | set(other.edges), "|")

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, set(self.edges) & set(other.edges), "&")

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, set(self.edges) - set(other.edges), "-")

    def __xor__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, set(self.edges) ^ set(other.edges), "^")

    def __le__(self, other: "Circuit") -> bool:
        self._check_comparable(other)
        return set(self.edges) <= set(other.edges)

    def _check_comparable(self, other: "Circuit") -> None:
        if self.qkv != other.qkv or not same_edge_set(self.config, other.config):
            raise CircuitError(
                f"{self!r} and {other!r} belong to ViTs with different edges, so they can't be "
                "compared. Find both on models of one shape, with the same qkv."
            )

    def _combined(self, other: "Circuit", edges: Iterable[str], sign: str) -> "Circuit":
        self._check_comparable(other)
        mine, theirs = self.provenance, other.provenance
        merged = Provenance(
            method=f"{mine.method} {sign} {theirs.method}", **agreed([mine, theirs])
        )
        scores = {**other.scores, **self.scores}
        return Circuit(self.config, edges, qkv=self.qkv, scores=scores, provenance=merged)

    def keeping(self, edges: Iterable[str]) -> "Circuit":
        """A circuit of the same model and origin with other edges; scores are kept where known."""
        return Circuit(
            self.config, edges, qkv=self.qkv, scores=self.scores, provenance=self.provenance
        )

    def complement(self) -> "Circuit":
        """The edges that this circuit removes."""
        return self.keeping(set(edge_names_of(self.config, self.qkv)) - set(self.edges))

    def graph(self) -> nx.DiGraph:
        """The kept edges as a DiGraph with `Node`, `Edge` and `score` attributes.

        Its nodes are `embed`, `logits` and every node that a kept edge touches. Edges that dangle
        have the attribute `dangling`.
        """
        kept, _ = in_order(self.config, self.edges, self.qkv)
        touched = {"embed", "logits"}
        for edge in kept:
            touched |= {edge.writer, edge.reader, node_named(edge.reader).unit}
        nodes = tuple(n for n in nodes_of(self.config, self.qkv) if n in touched)
        graph = graph_of(kept, nodes=nodes, qkv=self.qkv)
        everything = ["embed", *units_of(self.config), "logits"]
        graph.graph["units"] = [node_named(name) for name in everything]
        for edge in kept:
            if edge.name in self.scores:
                graph.edges[edge.writer, edge.reader]["score"] = self.scores[edge.name]
        for writer, reader in (name.split("->") for name in self.dangling()):
            graph.edges[writer, reader]["dangling"] = True
        return graph

    def units(self) -> tuple[str, ...]:
        """The heads and MLPs on a kept path from `embed` to `logits`, in forward order."""
        reached, useful = self._reach()
        return tuple(name for name in units_of(self.config) if name in reached & useful)

    def _reach(self) -> tuple[set[str], set[str]]:
        """Nodes reached by a kept path from `embed`, and nodes with a kept path to `logits`.

        A head's q, k and v lead to what the head writes.
        """
        ends = [(w, node_named(r).unit) for w, r in (name.split("->") for name in self.edges)]
        reached, useful = {"embed"}, {"logits"}
        for writer, unit in ends:  # in the pinned order, the last readers come first
            useful |= {writer} if unit in useful else set()
        for writer, unit in reversed(ends):
            reached |= {unit} if writer in reached else set()
        return reached, useful

    def unit_circuit(self) -> "Circuit":
        """The unit-level circuit: every edge among the kept units, `embed` and `logits`."""
        return self.keeping(edges_among(self.config, self.units(), self.qkv))

    def dangling(self, ablation: Ablation | None = None) -> tuple[str, ...]:
        """The kept edges that carry nothing: the same output results without them.

        Edges into a reader that reaches no logits always dangle. Edges from a writer that no path
        from `embed` reaches do under `patch` only: there such a writer writes its ablated value
        anyway, while under `zero` and `mean` it still writes a constant.

        Args:
            ablation: by default the one under which the circuit was found. Where that is not known,
                only edges are named that dangle under every ablation, although `run_circuit` and
                the measures then take `patch`: there ask for `dangling("patch")`.

        Raises:
            CircuitError: there is no such ablation.
        """
        if ablation not in (None, *get_args(Ablation)):
            raise CircuitError(f"ablation is {ablation!r}, expected one of {get_args(Ablation)}.")
        under = self.provenance.ablation if ablation is None else ablation
        reached, useful = self._reach()
        ends = ((name, *name.split("->")) for name in self.edges)
        return tuple(
            name
            for name, writer, reader in ends
            if node_named(reader).unit not in useful or (under == "patch" and writer not in reached)
        )

    def without_dangling(self, ablation: Ablation | None = None) -> "Circuit":
        """The circuit without the edges that `dangling` names; its provenance says how many went.

        Args:
            ablation: as in `dangling`.
        """
        gone = set(self.dangling(ablation))
        if not gone:
            return self
        under = self.provenance.ablation if ablation is None else ablation
        told = f"without {len(gone)} dangling {'edge' if len(gone) == 1 else 'edges'}"
        told += f" under {under}" if under else ""
        selection = ", ".join(filter(None, [self.provenance.selection, told]))
        return Circuit(
            self.config,
            (name for name in self.edges if name not in gone),
            qkv=self.qkv,
            scores=self.scores,
            provenance=replace(self.provenance, selection=selection),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the circuit as JSON (networkx node-link layout, with a checksum)."""
        links = nx.node_link_data(self._plain_graph(), edges="edges")
        body = {
            "config": self.config.as_dict(),
            "qkv": self.qkv,
            "provenance": self.provenance.as_dict(),
            "graph": links,
        }
        units = {name: score for name, score in self.scores.items() if "->" not in name}
        if units:  # else as files were before units had scores
            body["unit_scores"] = units
        return CIRCUIT.write(path, body)

    def _plain_graph(self) -> nx.DiGraph:
        graph = nx.DiGraph()
        for edge in (Edge(*name.split("->")) for name in self.edges):
            score = self.scores.get(edge.name)
            graph.add_edge(edge.writer, edge.reader, **({} if score is None else {"score": score}))
        return graph

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Circuit":
        """Read a circuit that `save` wrote.

        Raises:
            CircuitError: the file is missing, cut short, altered, or something else.
        """
        file = load_record(path, CIRCUIT, _File)
        with naming(path, CIRCUIT):
            file.graph.check()
            links = {link.name: link.score for link in file.graph.edges if link.score is not None}
            scores = {**file.unit_scores, **links}
            found = [link.name for link in file.graph.edges]
            return cls(file.config, found, qkv=file.qkv, scores=scores, provenance=file.provenance)

    def figure(self) -> "circuitvit.charts.saved_figure.Figure":
        """The circuit as a plotly figure: depth from left to right, heads upwards.

        `figure.save("circuit.svg")` (or `.png`, `.pdf`) writes it as a picture.
        """
        return figure(self.graph(), title=repr(self))

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        plotlyjs: bool | Literal["directory"] = True,
    ) -> Path:
        """Write an interactive page that works offline.

        Args:
            path: the file to write.
            title: the page's heading; by default a summary of the circuit.
            plotlyjs: True puts plotly.js (5 MB) into the page, `"directory"` beside it.
        """
        details = {
            key: value
            for key, value in asdict(self.provenance).items()
            if value not in (None, (), {}, "") and key not in ("ties", "versions", "pairs")
        }
        if recipe := self.provenance.pairs:
            details["pairs"] = f"{recipe.get('made')}, seed {recipe.get('seed')}"
        return page(
            path, self.graph(), title=title or repr(self), details=details, plotlyjs=plotlyjs
        )


def _check_scores(scores: Mapping[str, float], qkv: Qkv) -> None:
    """Refuse scores under a name that means several edges: none of them has that score.

    Raises:
        CircuitError: as it says.
    """
    readers = {name: name.partition("->")[2].rpartition(".")[2] for name in scores}
    joint = [name for name, last in readers.items() if last.startswith("h")]
    if qkv == "split" and joint:
        raise CircuitError(
            f"{len(joint)} scores have names of three edges each ({', '.join(joint[:3])}), and "
            "scores go by single edges: with qkv='split', q, k and v are read apart. Give a score "
            f"for each ({joint[0]}.q, {joint[0]}.k, {joint[0]}.v), or qkv='joint'."
        )


@dataclass(frozen=True)
class _File:
    """The fields of a circuit's file."""

    OPTIONAL: ClassVar = frozenset({"unit_scores"})

    config: ViTConfig
    qkv: Qkv
    provenance: Provenance
    graph: NodeLinks
    unit_scores: Mapping[str, float] = field(default_factory=dict)
