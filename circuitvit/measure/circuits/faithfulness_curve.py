"""Faithfulness over the share of edges kept, in one call.

CPR and CMD are those of Mueller et al. 2025 (MIB, arXiv 2504.13151): circuits of int(k·E) edges,
CPR ranked by score, CMD by |score|, areas by the trapezoid over k. We add random circuits of the
same size, of any edges and connected ones (`graph.controls`), and bootstrap intervals over images,
and count the edges that are really left: the public code drops dangling edges under every ablation,
we do so where they can't matter.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Circuit, Provenance
from circuitvit.graph.controls import random_families
from circuitvit.graph.edge_graph import Qkv, edge_count
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.measure.bootstrap import Estimate
from circuitvit.measure.circuits.curve import CONNECTED, RANDOM, Curve, Line, Point
from circuitvit.measure.circuits.outcome import Outcome
from circuitvit.measure.circuits.result import checked_draws, examined
from circuitvit.measure.circuits.task import Conditions
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of edges kept at which MIB looks."""

Family = list[tuple[float, Circuit]]
"""Circuits of one origin, each with its share of all edges."""


@runtime_checkable
class Ranking(Protocol):
    """The part of `EdgeScores` that a curve looks at."""

    @property
    def config(self) -> ViTConfig:
        """The shape of the ViT."""
        ...

    @property
    def qkv(self) -> Qkv:
        """Granularity of the heads' readers."""
        ...

    @property
    def provenance(self) -> Provenance:
        """How the scores were computed."""
        ...

    def __len__(self) -> int: ...

    def top(self, n: int, *, signed: bool = False) -> Circuit:
        """The circuit of the `n` best edges."""
        ...


@in_default_modes
def faithfulness_curve(
    vit: ViT,
    scores: Ranking | Sequence[Circuit],
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
    shares: Sequence[float] | None = None,
    controls: int = 15,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Curve:
    """Faithfulness of ever larger circuits, beside random ones of the same size.

    Where f is undefined, since m(full) − m(∅) is not clearly different from 0, the curve is there
    all the same and its f are None.

    Args:
        vit: the model.
        scores: `EdgeScores` at level `edge`, whose best edges by score (for CPR) and by |score|
            (for CMD) are taken; or circuits, such as those of ACDC at several τ.
        pairs: ones that discovery has not seen; those it saw are recorded as not held out.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`. Under `kl` f can't exceed 1,
            so that CMD is 0.999 − CPR for one ranking.
        ablation: what removed edges carry; by default that of discovery, for circuits made by
            hand `patch`.
        reference: images for `mean`.
        shares: k, each in (0, 1]; by default `SHARES`. For scores only.
        controls: how many random circuits at each size: so many of any edges, and so many
            connected ones, in which no edge dangles.
        bootstrap: resamples of the images for the 95% intervals, ≥ 1.
        seed: draws the random circuits and the resamples.

    Raises:
        CircuitError: the input doesn't fit together.
    """
    bootstrap, seed = checked_draws(bootstrap, seed)
    check_vit(vit)
    families, found = _families(scores, shares)
    for _, circuit in next(iter(families.values()))[: 1 if len(found) == 1 else None]:
        check_circuit(vit, circuit)
    examination = examined(vit, pairs, found, metric=metric, ablation=ablation, reference=reference)
    lines = tuple(families)
    families |= _random_families(families[lines[0]], whole(controls, "controls"), seed)
    conditions = examination.conditions(found, bootstrap=bootstrap, seed=seed)
    circuits = [circuit for family in families.values() for _, circuit in family]
    outcome = examination.outcome(
        circuits, count=len(circuits), what="Faithfulness", undefined=True
    )
    drawn = _lines(families, outcome, conditions)
    return Curve(
        conditions,
        all_edges=_all_edges(circuits[0]),
        full=float(outcome.full.mean()),
        empty=float(outcome.empty.mean()),
        lines=tuple(line for line in drawn if line.name in lines),
        controls=tuple(line for line in drawn if line.name not in lines),
        undefined=outcome.why_undefined,
    )


def _families(
    scores: object, shares: Sequence[float] | None
) -> tuple[dict[str, Family], list[Provenance]]:
    if isinstance(scores, Ranking):
        return _ranked(scores, _checked_shares(shares)), [scores.provenance]
    given = list(scores) if isinstance(scores, Sequence) else []
    if not given or not all(isinstance(item, Circuit) for item in given):
        raise CircuitError(
            f"scores are a {type(scores).__name__}, expected EdgeScores or at least one Circuit in "
            "a list."
        )
    if shares is not None or len({circuit.qkv for circuit in given}) > 1:
        raise CircuitError(
            "circuits bring their own shares of one set of edges. Leave out shares=, and give "
            "circuits that were found with the same qkv."
        )
    ordered = sorted(given, key=len)
    family = [(len(circuit) / _all_edges(circuit), circuit) for circuit in ordered]
    return {"circuits": family}, [circuit.provenance for circuit in ordered]


def _ranked(scores: Ranking, shares: Sequence[float]) -> dict[str, Family]:
    if scores.provenance.level != "edge" or not len(scores):
        raise CircuitError(
            f"got {len(scores)} scores at level {scores.provenance.level!r}, expected those of "
            "edges. Give circuits instead: [scores.top(n) for n in ...]."
        )
    return {
        name: [(k, scores.top(int(k * len(scores)), signed=name == "signed")) for k in shares]
        for name in ("signed", "absolute")
    }


def _checked_shares(shares: Sequence[float] | None) -> list[float]:
    if shares is None:
        return list(SHARES)
    if not isinstance(shares, Iterable) or isinstance(shares, str):
        raise CircuitError(f"shares are {shares!r}, expected several, such as [0.01, 0.1, 1].")
    numbers = [real(share, "a share") for share in shares]
    if not numbers or not all(0 < share <= 1 for share in numbers):
        raise CircuitError(f"shares are {numbers}, expected at least one, each above 0 and ≤ 1.")
    return sorted(set(numbers))


def _all_edges(circuit: Circuit) -> int:
    return edge_count(circuit.config, circuit.qkv)


def _random_families(family: Family, controls: int, seed: int) -> dict[str, Family]:
    """Circuits with as many edges, drawn so that the larger ones hold the smaller ones."""
    if controls < 0:
        raise CircuitError(f"controls is {controls}, expected ≥ 0 random circuits at each size.")
    model, sizes = family[0][1], [len(circuit) for _, circuit in family]
    shares = [share for share, _ in family]
    families: dict[str, Family] = {}
    for name in (RANDOM, CONNECTED):
        drawn = random_families(
            model.config, sizes, qkv=model.qkv, connected=name == CONNECTED, count=controls,
            seed=seed,
        )  # fmt: skip
        for draw, circuits in enumerate(drawn):
            families[f"{name} {draw}"] = list(zip(shares, circuits, strict=True))
    return families


def _lines(families: dict[str, Family], outcome: Outcome, conditions: Conditions) -> list[Line]:
    values, means = outcome.faithfulness(), outcome.circuits.mean(axis=1)
    samples = outcome.resampled_faithfulness(resamples=conditions.bootstrap, seed=conditions.seed)
    lines, column = [], 0
    for name, family in families.items():
        points = tuple(
            Point(
                share=share,
                edges=len(circuit),
                left=outcome.left[place],
                share_left=outcome.left[place] / _all_edges(circuit),
                metric=float(means[place]),
                faithfulness=Estimate.of(values[place], samples[:, place]),
            )
            for place, (share, circuit) in enumerate(family, start=column)
        )
        end = column + len(family)
        lines.append(Line.of(name, points, samples[:, column:end]))
        column = end
    return lines
