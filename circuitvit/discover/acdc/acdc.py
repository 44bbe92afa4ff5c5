"""ACDC: remove edge after edge as long as the metric hardly moves.

Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability". Readers
come in the pinned reverse topological order, for each its writers, latest first; an edge goes when
removing it raises D(H) = ℓ(H) − ℓ(full) by less than τ. Deviations: differences are signed, and a
reader whose node nobody reads any more loses its edges without an evaluation.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.checks import real, whole
from circuitvit.discover.acdc.callable_identity import checked_name
from circuitvit.discover.acdc.chunks import images_that_fit
from circuitvit.discover.acdc.decisions import TIE, Decisions
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.resume import ResumeFile
from circuitvit.discover.acdc.search import NO_RECORD, EdgeSearch, in_common
from circuitvit.discover.batching import NO_MEMORY, is_out_of_memory
from circuitvit.discover.scores import EdgeScores, names_at, units_at
from circuitvit.discover.task import Problem
from circuitvit.errors import CircuitError
from circuitvit.files import held
from circuitvit.graph.circuit import Ablation, Circuit, Level, edges_among
from circuitvit.graph.edge_graph import ORDER, Qkv, edges_of, units_of
from circuitvit.images import Pairs
from circuitvit.intervene.circuit_runs import Runs, images_in_chunk
from circuitvit.intervene.input_checks import check_circuit
from circuitvit.intervene.metrics import Metric
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.models.vit import ViT
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes


@dataclass(frozen=True)
class Question:
    """What a search is asked, τ apart; make it with `Question.checked`."""

    problem: Problem
    level: Level
    qkv: Qkv
    within: Circuit | None
    order: EdgeScores | None
    predict: EdgeScores | None
    images: int | None
    speedups: Speedups | None

    @classmethod
    def checked(
        cls,
        vit: ViT,
        pairs: Pairs,
        *,
        metric: Metric,
        ablation: Ablation,
        level: Level,
        reference: Tensor | None,
        qkv: Qkv,
        images_at_once: int | None,
        **starts: Any,
    ) -> "Question":
        """Check everything that can be checked before work starts; arguments as of `acdc`."""
        problem = Problem.checked(
            vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference
        )
        edges_of(vit.config, qkv)
        if images_at_once is not None and whole(images_at_once, "images_at_once") < 1:
            raise CircuitError(f"images_at_once is {images_at_once}, expected ≥ 1.")
        speedups = starts["speedups"]
        if not isinstance(speedups, Speedups | None):
            raise CircuitError(
                f"speedups are a {type(speedups).__name__}, expected "
                "circuitvit.discover.Speedups(...)."
            )
        for name in ("within", "order", "predict"):
            _check_start(vit, name, starts[name], level, qkv)
        return cls(problem, level, qkv, images=images_at_once, **starts)

    @property
    def order_name(self) -> str:
        """The order in which edges are tried, as it is recorded."""
        if self.order is None:
            return ORDER
        return f"{ORDER}, writers by |{self.order.provenance.method}|, weakest first"

    @property
    def selection(self) -> str | None:
        """What the search starts from, as it is recorded."""
        if self.within is None:
            return None
        origin = self.within.provenance
        return f"within {origin.selection or origin.method} of {origin.method}"

    def record(self, tau: float) -> dict[str, Any]:
        """What has to agree for a search to be taken up again.

        Raises:
            CircuitError: the metric is a callable that can't be told from others.
        """
        origin = self.problem.provenance(
            method="acdc", level=self.level, tau=tau, order=self.order_name
        )
        agree = ("level", "ablation", "metric", "order", "tau", "images", "model", "data")
        own = {name: getattr(origin, name) for name in (*agree, "reference")}
        edges = None if self.within is None else _digest(self.within.edges)
        scores = (
            None if self.order is None else _digest(f"{k} {v!r}" for k, v in self.order.items())
        )
        own["metric"] = checked_name(self.problem.metric, "metric")
        return {**own, "qkv": self.qkv, "within": edges, "writers": scores}


@in_default_modes
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
    within: Circuit | None = None,
    order: EdgeScores | None = None,
    predict: EdgeScores | None = None,
    resume: str | os.PathLike[str] | None = None,
    images_at_once: int | None = None,
    speedups: Speedups | None = None,
) -> Circuit:
    """Find the circuit that ACDC leaves.

    Args:
        vit: the model; it is not changed.
        pairs: clean images, with what the ablation and the metric need.
        tau: how much the metric may rise by one removal, > 0.
        ablation: what removed edges carry: `patch`, `zero` or `mean`.
        metric: a name or a callable; see `circuitvit.intervene.metrics`.
        level: `edge`; `node` and `block` remove all out-edges of a unit or a whole block at once.
        qkv: whether a head's query, key and value read apart.
        reference: images for `mean`, [image channel height width].
        within: a circuit to start from in place of all edges, such as `scores.top(2000)`: ACDC on
            what a cheap method leaves. D is still measured from the full model.
        order: edge scores; each reader's writers are tried by |score|, weakest first, in place of
            the pinned order. Another order is another circuit; it is recorded.
        predict: edge scores; edges with |score| ≥ τ are taken for kept when several are tried at
            once. It changes the time, not the circuit.
        resume: a file in which the search notes what it has measured; if it is there, the search
            goes on from it. It may be killed at any time.
        images_at_once: pairs held at once; by default as many as the memory takes that is free and
            within the limits in force (`ulimit -v`, control groups). With fewer than there are,
            each decision still looks at all, and the search takes several times as long.
        speedups: what may be done to be fast (at `level="edge"`); it changes no decision.

    Returns:
        The kept edges; each edge's score is the rise that its removal would have caused when it was
        tried. At the other levels, all edges among the kept units. `provenance.ties` are the edges
        whose rise is τ within the numerical error of the model's dtype. A model in half precision
        is searched in single, with the same weights.

    Raises:
        CircuitError: the input doesn't fit together, the metric becomes NaN, memory does not
            suffice for one pair, or `resume` is the file of another search, can't be written, or is
            given with a metric that can't be told from others, such as a lambda.
    """
    tau = _checked_tau(tau)
    question = Question.checked(
        vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference, qkv=qkv,
        images_at_once=images_at_once, within=within, order=order, predict=predict,
        speedups=speedups,
    )  # fmt: skip
    if resume is None:
        return searched(question, undecided(question, tau), None)
    with held(resume, "a search"):
        file = ResumeFile(resume, question.record(tau))
        decisions = undecided(question, tau)
        decisions.measured = list(file.earlier)
        decisions.start, decisions.scale, decisions.full = file.start, file.scale, file.full
        return searched(question, decisions, file)


@in_default_modes
def acdc_sweep(
    vit: ViT, pairs: Pairs, taus: Iterable[float], **options: Any
) -> tuple[Circuit, ...]:
    """The circuits of ACDC at several τ, which share what their searches have in common.

    Args:
        vit: the model; it is not changed.
        pairs: clean images, with what the ablation and the metric need.
        taus: the thresholds, in any order.
        **options: those of `acdc`, `resume` apart.

    Returns:
        One circuit for each τ, each as `acdc` alone would have found it.

    Raises:
        CircuitError: as `acdc`.
    """
    if "resume" in options:
        raise CircuitError("acdc_sweep has no resume; call acdc for each τ with a file of its own.")
    defaults: dict[str, Any] = {
        "metric": "kl", "ablation": "patch", "level": "edge", "reference": None, "qkv": "split",
        "images_at_once": None, "within": None, "order": None, "predict": None, "speedups": None,
    }  # fmt: skip
    unknown = set(options) - set(defaults)
    if unknown:
        raise CircuitError(f"got {sorted(unknown)}, expected some of {sorted(defaults)}.")
    if not isinstance(taus, Iterable):
        raise CircuitError(f"taus is {taus!r}, expected several numbers, such as [0.01, 0.02].")
    wanted = [_checked_tau(tau) for tau in taus]
    question = Question.checked(vit, pairs, **{**defaults, **options})
    done: dict[float, tuple[Decisions, Circuit]] = {}
    for tau in sorted(set(wanted)):
        decisions = undecided(question, tau)
        for other, (earlier, _) in done.items():
            shared = in_common(earlier.measured, earlier.start, other, tau)
            if shared > len(decisions.measured):
                decisions.measured = earlier.measured[:shared]
                decisions.start, decisions.scale = earlier.start, earlier.scale
        circuit = searched(question, decisions, None)
        done[tau] = decisions, circuit
    return tuple(done[tau][1] for tau in wanted)


def _checked_tau(tau: float) -> float:
    if not 0 < real(tau, "tau") < float("inf"):
        raise CircuitError(
            f"tau is {tau}, expected a number > 0: the rise of the metric that an edge may cost."
        )
    return float(tau)


def _check_start(
    vit: ViT, name: str, given: Circuit | EdgeScores | None, level: str, qkv: str
) -> None:
    if given is None:
        return
    expected = Circuit if name == "within" else EdgeScores
    if not isinstance(given, expected):
        raise CircuitError(f"{name} is a {type(given).__name__}, expected {expected.__name__}.")
    if level != "edge":
        raise CircuitError(f"{name} is for level='edge', got level={level!r}. Leave it out.")
    if given.qkv != qkv:
        raise CircuitError(f"{name} has qkv={given.qkv!r}, the search qkv={qkv!r}. Use the same.")
    if isinstance(given, EdgeScores):
        names = names_at(vit.config, "edge", given.qkv)
        if tuple(given) != names:
            raise CircuitError(
                f"{name} are {given!r}, not a score for each of this model's {len(names)} edges. "
                "Score the same model at level='edge'."
            )
    else:
        check_circuit(vit, given)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def undecided(question: Question, tau: float) -> Decisions:
    """What a search at some τ starts with."""
    return Decisions(tau, TIE[question.problem.given_dtype])


def searched(question: Question, decisions: Decisions, file: ResumeFile | None) -> Circuit:
    """Search to the end; what was measured is saved when the search is cut short, too."""
    vit, problem = question.problem.vit, question.problem
    names = names_at(vit.config, question.level, question.qkv)
    names = names if question.within is None else question.within.edges
    name = "ACDC" if question.level == "edge" else f"ACDC ({question.level}s)"
    with torch.no_grad(), progress(name, len(names), done=len(decisions.measured)) as show:

        def advance(note: str = "", steps: int = 1) -> None:
            show(note, steps=steps)
            if file is not None:
                file.note(decisions)

        try:
            find = _edges if question.level == "edge" else _units
            kept = find(question, decisions, advance)
        finally:
            if file is not None:
                file.note(decisions, now=True)
    origin = problem.provenance(
        method="acdc",
        level=question.level,
        order=question.order_name,
        selection=question.selection,
        tau=decisions.tau,
        evaluations=decisions.evaluations,
        divergence=decisions.current,
        ties=tuple(decisions.ties),
    )
    # A unit's rise is that after others went, which is no node effect, so it ranks nothing.
    scores = decisions.rises if question.level == "edge" else None
    return Circuit(vit.config, kept, qkv=question.qkv, scores=scores, provenance=origin)


def _edges(
    question: Question, decisions: Decisions, advance: Callable[..., None]
) -> tuple[str, ...]:
    search = EdgeSearch(
        question.problem,
        decisions,
        qkv=question.qkv,
        within=None if question.within is None else question.within.edges,
        order=question.order,
        predict=question.predict,
        images=question.images,
        speedups=question.speedups,
    )
    return search.edges(advance)


def _units(
    question: Question, decisions: Decisions, advance: Callable[..., None]
) -> tuple[str, ...]:
    """All edges among the units that stay."""
    problem, level = question.problem, question.level
    config, removed = problem.vit.config, set[str]()
    earlier, decisions.measured = decisions.measured, []
    (full,) = logits_without(problem, [()], question.images)
    start = mean_loss(problem, full, full)
    decisions.stand_on(start, float(full.abs().max()))
    for name in names_at(config, level, question.qkv):
        candidate = removed | set(units_at(config, level, [name]))
        if earlier:
            value = earlier.pop(0)
            if value is None:
                raise CircuitError(NO_RECORD)
        else:
            (logits,) = logits_without(problem, [candidate], question.images)
            value = mean_loss(problem, logits, full) - start
            advance(f"removed {len(removed)}")
        if decisions.goes(name, value):
            removed = candidate
    kept = [unit for unit in units_of(config) if unit not in removed]
    return edges_among(config, kept, question.qkv)


def mean_loss(
    problem: Problem, logits: Float[Tensor, "image class"], full: Float[Tensor, "image class"]
) -> float:
    """The metric over all pairs."""
    return float(problem.loss(logits, problem.pairs, full).double().mean())


def logits_without(
    problem: Problem,
    removed: Iterable[Iterable[str]],
    images: int | None = None,
    advance: Callable[..., None] = lambda steps: None,
) -> list[Float[Tensor, "image class"]]:
    """The logits for all pairs when some units write their ablated value everywhere.

    Args:
        problem: what is asked.
        removed: sets of units, each of which is removed on its own.
        images: how many pairs go at once.
        advance: called after each run, with its number of pairs as `steps`.
    """
    vit, start = problem.vit, 0
    plan = RunPlan(vit.config, consistent=problem.ablation == "patch")
    for units in map(set, removed):
        plan.add(e.name for e in edges_of(vit.config) if e.writer not in units)
    images = images or min(images_in_chunk(vit), images_that_fit(problem))
    chunks: list[list[Tensor]] = []
    while start < len(problem.pairs):
        chunk = problem.pairs.subset(slice(start, start + images))
        found: list[Tensor] = []
        try:
            for logits in Runs(vit, plan, chunk.clean, problem.ablated_writes(chunk)).logits():
                found.append(logits)
                advance(steps=len(chunk))
        except (RuntimeError, MemoryError) as cause:
            if not is_out_of_memory(cause):
                raise
            if len(chunk) == 1:
                raise CircuitError(NO_MEMORY) from cause
            images = len(chunk) // 2
            advance(steps=-len(found) * len(chunk))
            continue
        chunks.append(found)
        start += len(chunk)
    return [torch.cat(some) for some in zip(*chunks, strict=True)]
