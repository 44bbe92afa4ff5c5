"""ACDC: remove edge after edge as long as the metric hardly moves.

Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability". Readers
come in the pinned reverse topological order, for each its writers, latest first; an edge goes when
removing it raises D(H) = ℓ(H) − ℓ(full) by less than τ. Deviations: differences are signed, and a
reader whose node nobody reads any more loses its edges without an evaluation.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.ablation import EdgeMask, run_embedded
from circuitvit.checks import real
from circuitvit.circuit import Ablation, Circuit, Level, edges_among
from circuitvit.discover.incremental import IncrementalRun
from circuitvit.discover.problem import Problem
from circuitvit.discover.scores import names_at, units_at
from circuitvit.edge_graph import (
    Qkv,
    edge_names_of,
    edges_of,
    node_named,
    readers_of,
    units_of,
    writers_of,
)
from circuitvit.errors import CircuitError
from circuitvit.images import Pairs
from circuitvit.metrics import Metric
from circuitvit.progress import progress
from circuitvit.vit import PARTS, ViT

TIE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Decisions closer to τ than this are reported as ties; relative to max(1, |D|)."""


def acdc(
    vit: ViT,
    pairs: Pairs,
    *,
    tau: float = 0.01,
    ablation: Ablation = "patch",
    metric: Metric = "kl",
    level: Level = "edge",
    qkv: Qkv = "split",
    reference: Tensor | None = None,
) -> Circuit:
    """Find the circuit that ACDC leaves.

    Args:
        vit: the model; it is not changed.
        pairs: clean images, with what the ablation and the metric need.
        tau: how much the metric may rise by one removal, > 0.
        ablation: what removed edges carry: `patch`, `zero` or `mean`.
        metric: a name or a callable; see `circuitvit.metrics`.
        level: `edge`; `node` and `block` remove all out-edges of a unit or a whole block at once.
        qkv: whether a head's query, key and value read apart.
        reference: images for `mean`, [image channel height width].

    Returns:
        The kept edges; each edge's score is the rise that its removal would have caused when it was
        tried. At the other levels, all edges among the kept units.

    Raises:
        CircuitError: the input doesn't fit together, or the metric becomes NaN.
    """
    if not real(tau, "tau") > 0:
        raise CircuitError(
            f"tau is {tau}, expected a number > 0: the rise of the metric that an edge may cost."
        )
    problem = Problem.checked(
        vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference
    )
    edges_of(vit.config, qkv)
    with torch.no_grad():
        search = _Search(problem, float(tau))
        kept = search.edges(qkv) if level == "edge" else search.units(level, qkv)
    origin = problem.provenance(
        method="acdc",
        level=level,
        tau=float(tau),
        evaluations=search.evaluations,
        divergence=search.current,
        ties=tuple(search.ties),
    )
    return Circuit(vit.config, kept, qkv=qkv, scores=search.rises, provenance=origin)


class _Search:
    """The state of one ACDC run: D so far, what each kept edge cost, and how often was asked."""

    def __init__(self, problem: Problem, tau: float) -> None:
        self.problem = problem
        self.tau = tau
        self.current = 0.0
        self.evaluations = 0
        self.rises: dict[str, float] = {}
        self.ties: list[str] = []
        vit, pairs = problem.vit, problem.pairs
        self._ablated = problem.ablated(pairs)
        self._run = IncrementalRun(vit, pairs.clean, self._ablated)
        self._full = self._run.logits
        self._start = self._mean_loss(self._full)
        self._tie = TIE.get(self._full.dtype, 1e-6)

    def _mean_loss(self, logits: Tensor) -> float:
        return float(self.problem.loss(logits, self.problem.pairs, self._full).double().mean())

    def _goes(self, name: str, logits: Tensor) -> bool:
        """Whether something may go, given the logits without it; notes what it would cost."""
        self.evaluations += 1
        new = self._mean_loss(logits) - self._start
        if new != new:
            raise CircuitError(
                f"the metric became NaN without {name}; the weights may be too large."
            )
        rise = new - self.current
        if abs(rise - self.tau) <= self._tie * max(1.0, abs(new)):
            self.ties.append(name)
        if rise < self.tau:
            self.current = new
            return True
        self.rises[name] = rise
        return False

    def edges(self, qkv: Qkv) -> tuple[str, ...]:
        """The edges that stay."""
        config = self.problem.vit.config
        total = len(edge_names_of(config, qkv))
        with progress("ACDC", total) as advance:
            for reader in readers_of(config, qkv):
                self._try_reader(reader, advance)
        return tuple(self.rises)

    def _try_reader(self, reader: str, advance: Callable[..., None]) -> None:
        node, run = node_named(reader), self._run
        split = [reader] if node.kind != "head" or node.part else [f"{reader}.{p}" for p in PARTS]
        writers = run.writers_into(split[0])
        if node.kind != "logits" and not run.has_reader(node.unit):
            run.drop_all(split)
            advance(f"kept {len(self.rises)}", steps=len(writers))
            return
        names, read = writers_of(self.problem.vit.config), run.exact_read(split[0])
        for writer in writers:
            without = read - run.difference(writer)
            trial = run.try_read(dict.fromkeys(split, without))
            if self._goes(f"{names[writer]}->{reader}", trial.logits):
                run.commit(trial, split, writer)
                read = without
            advance(f"kept {len(self.rises)}")

    def units(self, level: Level, qkv: Qkv) -> tuple[str, ...]:
        """All edges among the units that stay."""
        config = self.problem.vit.config
        names, removed = names_at(config, level, qkv), set[str]()
        with progress(f"ACDC ({level}s)", len(names)) as advance:
            for name in names:
                candidate = removed | set(units_at(config, level, [name]))
                if self._goes(name, without_units(self.problem, candidate, self._ablated)):
                    removed = candidate
                advance(f"removed {len(removed)}")
        kept = [unit for unit in units_of(config) if unit not in removed]
        return edges_among(config, kept, qkv)


def without_units(
    problem: Problem, units: Iterable[str], ablated: Float[Tensor, " writer #image #token #width"]
) -> Float[Tensor, "image class"]:
    """The logits when some units write their ablated value everywhere."""
    vit, removed = problem.vit, set(units)
    kept = (e.name for e in edges_of(vit.config) if e.writer not in removed)
    mask = EdgeMask.of(vit.config, kept)
    return run_embedded(vit, vit.embed(problem.pairs.clean), mask, ablated).logits
