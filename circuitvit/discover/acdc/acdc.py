"""ACDC: remove edge after edge as long as the metric hardly moves.

Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability". Readers
come in the pinned reverse topological order, for each its writers, latest first; an edge goes when
removing it raises D(H) = ℓ(H) − ℓ(full) by less than τ. Deviations: differences are signed, and a
reader whose node nobody reads any more loses its edges without an evaluation.
"""

import os
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from circuitvit.checks import real
from circuitvit.discover.acdc.decisions import TIE, Decisions
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.resume import ResumeFile
from circuitvit.discover.acdc.search import NO_RECORD, EdgeSearch, in_common
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.discover.scores import EdgeScores, names_at, units_at
from circuitvit.errors import CircuitError
from circuitvit.files import held
from circuitvit.graph.circuit import Ablation, Circuit, Level, edges_among
from circuitvit.graph.edge_graph import Qkv, units_of
from circuitvit.images import Pairs
from circuitvit.intervene.circuit_runs import logits_without
from circuitvit.intervene.metrics import Metric
from circuitvit.models.vit import ViT
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes


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
    settings = SearchSettings.checked(
        vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference, qkv=qkv,
        images_at_once=images_at_once, within=within, order=order, predict=predict,
        speedups=speedups,
    )  # fmt: skip
    if resume is None:
        return searched(settings, undecided(settings, tau), None)
    with held(resume, "a search"):
        file = ResumeFile(resume, settings.record(tau))
        decisions = undecided(settings, tau)
        decisions.measured = list(file.earlier)
        decisions.start, decisions.scale, decisions.full = file.start, file.scale, file.full
        return searched(settings, decisions, file)


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
    known = sorted(set(signature(acdc).parameters) - {"vit", "pairs", "tau", "resume"})
    unknown = set(options) - set(known)
    if unknown:
        raise CircuitError(f"got {sorted(unknown)}, expected some of {known}.")
    if not isinstance(taus, Iterable):
        raise CircuitError(f"taus is {taus!r}, expected several numbers, such as [0.01, 0.02].")
    wanted = [_checked_tau(tau) for tau in taus]
    settings = SearchSettings.checked(vit, pairs, **options)
    done: dict[float, tuple[Decisions, Circuit]] = {}
    for tau in sorted(set(wanted)):
        decisions = undecided(settings, tau)
        for other, (earlier, _) in done.items():
            shared = in_common(earlier.measured, earlier.start, other, tau)
            if shared > len(decisions.measured):
                decisions.measured = earlier.measured[:shared]
                decisions.start, decisions.scale = earlier.start, earlier.scale
        circuit = searched(settings, decisions, None)
        done[tau] = decisions, circuit
    return tuple(done[tau][1] for tau in wanted)


def _checked_tau(tau: float) -> float:
    if not 0 < real(tau, "tau") < float("inf"):
        raise CircuitError(
            f"tau is {tau}, expected a number > 0: the rise of the metric that an edge may cost."
        )
    return float(tau)


def undecided(settings: SearchSettings, tau: float) -> Decisions:
    """The decisions of a search that has not begun, at a τ."""
    return Decisions(tau, TIE[settings.task.given_dtype])


def searched(settings: SearchSettings, decisions: Decisions, file: ResumeFile | None) -> Circuit:
    """Search to the end; what was measured is saved when the search is cut short, too."""
    vit, task = settings.task.vit, settings.task
    names = names_at(vit.config, settings.level, settings.qkv)
    names = names if settings.within is None else settings.within.edges
    name = "ACDC" if settings.level == "edge" else f"ACDC ({settings.level}s)"
    with torch.no_grad(), progress(name, len(names), done=len(decisions.measured)) as show:

        def advance(note: str = "", steps: int = 1) -> None:
            show(note, steps=steps)
            if file is not None:
                file.note(decisions)

        try:
            find = _edges if settings.level == "edge" else _units
            kept = find(settings, decisions, advance)
        finally:
            if file is not None:
                file.note(decisions, now=True)
    origin = task.provenance(
        method="acdc",
        level=settings.level,
        order=settings.order_name,
        selection=settings.selection,
        tau=decisions.tau,
        evaluations=decisions.evaluations,
        divergence=decisions.current,
        ties=tuple(decisions.ties),
    )
    # A unit's rise is that after others went, which is no node effect, so it ranks nothing.
    scores = decisions.rises if settings.level == "edge" else None
    return Circuit(vit.config, kept, qkv=settings.qkv, scores=scores, provenance=origin)


def _edges(
    settings: SearchSettings, decisions: Decisions, advance: Callable[..., None]
) -> tuple[str, ...]:
    return EdgeSearch(settings, decisions).edges(advance)


def _units(
    settings: SearchSettings, decisions: Decisions, advance: Callable[..., None]
) -> tuple[str, ...]:
    """All edges among the units that stay."""
    task, level = settings.task, settings.level
    config, removed = task.vit.config, set[str]()
    earlier, decisions.measured = decisions.measured, []
    (full,) = logits_without(task, [()], settings.images)
    start = task.mean_loss(full, full)
    decisions.record_baseline(start, float(full.abs().max()))
    for name in names_at(config, level, settings.qkv):
        candidate = removed | set(units_at(config, level, [name]))
        if earlier:
            value = earlier.pop(0)
            if value is None:
                raise CircuitError(NO_RECORD)
        else:
            (logits,) = logits_without(task, [candidate], settings.images)
            value = task.mean_loss(logits, full) - start
            advance(f"removed {len(removed)}")
        if decisions.decide(name, value):
            removed = candidate
    kept = [unit for unit in units_of(config) if unit not in removed]
    return edges_among(config, kept, settings.qkv)
