"""Faithfulness of a circuit, and its curve over the share of edges kept.

CPR and CMD are those of Mueller et al. 2025 (MIB, arXiv 2504.13151): circuits of int(k·E) edges,
CPR ranked by score, CMD by |score|, areas by the trapezoid over k. We add random circuits of the
same size, of any edges and connected ones (`graph.controls`), and bootstrap intervals over images,
and count the edges that are really left: the public code drops dangling edges under every ablation,
we do so where they can't matter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuitvit.charts.chart import CURVE as READING
from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.escaping import markdown_text
from circuitvit.files.records import CURVE, RecordKind
from circuitvit.graph.circuit import Ablation, Circuit, Provenance
from circuitvit.graph.controls import random_families
from circuitvit.graph.edge_graph import Qkv, edge_count
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.measure.bootstrap import Estimate, Spread, shown
from circuitvit.measure.circuits.losses import Conditions, Outcome, conditions_of, outcome_of
from circuitvit.measure.circuits.result import Measurement, checked_draws, measured_task
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes

COLORS = {"signed": "#0b7285", "absolute": "#d9480f", "circuits": "#0b7285"}
RANDOM, CONNECTED = "random", "connected"
"""How the lines of random circuits are named, and how their summaries are: of any edges, and of
edges that all lie on a path from `embed` to `logits`."""
RANDOM_COLORS = {RANDOM: "#7b8794", CONNECTED: "#5f3dc4"}
TITLES = {"signed": "ranked by score", "absolute": "ranked by |score|", "circuits": "circuits"}

BANDS = "bands: 95% over images"


@dataclass(frozen=True)
class Point:
    """One circuit.

    Attributes:
        share: k, the share of all edges that was asked for, 0–1; a given circuit's own share.
        edges: how many it has.
        left: how many of them don't dangle under this ablation.
        share_left: `left` as a share of all edges.
        metric: mean of m over the images.
        faithfulness: f; its figures are None where it is undefined.
    """

    share: float
    edges: int
    left: int
    share_left: float
    metric: float
    faithfulness: Estimate


@dataclass(frozen=True)
class Line:
    """Circuits of one origin, from sparse to dense, with the areas of Mueller et al. 2025.

    Areas are trapezoids between the first and the last share; None for fewer than two circuits.
    Over `SHARES` a perfect CPR is 0.999 and a perfect CMD 0. Areas `_left` are over the edges that
    don't dangle.

    Attributes:
        name: `signed`, `absolute`, `circuits`; or `random 0`, …, `connected 0`, ….
        points: the circuits.
        cpr: ∫ f dk.
        cmd: ∫ |1 − f| dk.
        cpr_left: ∫ f dk.
        cmd_left: ∫ |1 − f| dk.
    """

    name: str
    points: tuple[Point, ...]
    cpr: Estimate | None
    cmd: Estimate | None
    cpr_left: Estimate | None
    cmd_left: Estimate | None

    @classmethod
    def of(
        cls,
        name: str,
        points: tuple[Point, ...],
        samples: Float[np.ndarray, "resample point"],
    ) -> "Line":
        """The line through some points, given f of each on every resample."""
        value = np.array([[point.faithfulness.value for point in points]], float)
        nominal = np.array([point.share for point in points])
        left = np.array([point.share_left for point in points])

        def area(shares: Float[np.ndarray, " point"], *, missing: bool) -> Estimate | None:
            if len(points) < 2:
                return None
            order = np.argsort(shares, kind="stable")
            heights = [np.abs(1 - f) if missing else f for f in (value, samples)]
            own, drawn = (np.trapezoid(h[:, order], shares[order], axis=1) for h in heights)
            return Estimate.of(float(own[0]), drawn)

        return cls(
            name,
            points,
            cpr=area(nominal, missing=False),
            cmd=area(nominal, missing=True),
            cpr_left=area(left, missing=False),
            cmd_left=area(left, missing=True),
        )


@dataclass(frozen=True)
class Curve(Measurement):
    """Faithfulness over the share of edges kept.

    Attributes:
        all_edges: how many edges the model has.
        full: mean of m for the full model.
        empty: mean of m with no edges.
        lines: `signed` and `absolute` for scores, `circuits` for given circuits.
        controls: random circuits with as many edges, a line for each draw: of any edges first,
            then connected ones, in which no edge dangles.
        undefined: why f is undefined; None where it is defined.
    """

    KIND: ClassVar[RecordKind] = CURVE
    DERIVED: ClassVar[tuple[str, ...]] = ("cpr", "cmd", RANDOM, CONNECTED)
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"undefined"})

    all_edges: int
    full: float
    empty: float
    lines: tuple[Line, ...]
    controls: tuple[Line, ...]
    undefined: str | None = None

    def __getitem__(self, name: str) -> Line:
        return next(line for line in (*self.lines, *self.controls) if line.name == name)

    @property
    def cpr(self) -> Estimate | None:
        """∫ f dk of the signed ranking, or of the circuits that were given; more is better."""
        return self.lines[0].cpr

    @property
    def cmd(self) -> Estimate | None:
        """∫ |1 − f| dk of the ranking by |score|, or of the given circuits; less is better."""
        return self.lines[-1].cmd

    def random(self) -> tuple[Spread, ...]:
        """Faithfulness of random circuits of any edges at each share; nothing without controls."""
        return self._spreads(RANDOM)

    def connected(self) -> tuple[Spread, ...]:
        """Faithfulness of random connected circuits at each share; nothing without controls."""
        return self._spreads(CONNECTED)

    def _spreads(self, family: str) -> tuple[Spread, ...]:
        columns = zip(*(line.points for line in self._family(family)), strict=True)
        return tuple(Spread.of([p.faithfulness.value for p in column]) for column in columns)

    def _family(self, family: str) -> list[Line]:
        return [line for line in self.controls if line.name.startswith(family)]

    def _families(self) -> list[str]:
        """The families of random circuits; older files have no connected ones."""
        return [family for family in (RANDOM, CONNECTED) if self._family(family)]

    def random_area(self, name: str, *, connected: bool = False) -> Spread | None:
        """An area (`cpr`, `cmd`, `cpr_left`, `cmd_left`) of the random circuits."""
        lines = self._family(CONNECTED if connected else RANDOM)
        areas: list[Estimate | None] = [getattr(line, name) for line in lines]
        known = [area.value for area in areas if area is not None]
        return Spread.of(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, with CPR, CMD and the summaries of the controls."""
        return self.KIND.marked({
            **super().as_dict(),
            "cpr": _plain(self.cpr),
            "cmd": _plain(self.cmd),
            **{family: self._summary(family) for family in (RANDOM, CONNECTED)},
        })  # fmt: skip

    def _summary(self, family: str) -> dict[str, Any]:
        areas = ("cpr", "cmd", "cpr_left", "cmd_left")
        connected = family == CONNECTED
        controls = {a: _plain(self.random_area(a, connected=connected)) for a in areas}
        return {"faithfulness": [vars(spread) for spread in self._spreads(family)], **controls}

    def table(self) -> list[list[str]]:
        """A row for each share, then the areas; header first."""
        names = [f"f, {TITLES[line.name]}" for line in self.lines]
        left = [f"edges left, {TITLES[line.name]}" for line in self.lines]
        random = {RANDOM: "f, random edges", CONNECTED: "f, random connected"}
        header = ["k", "edges", *left, *names, *(random[name] for name in self._families())]
        rows = [
            [
                f"{points[0].share:z.3g}",
                str(points[0].edges),
                *(str(point.left) for point in points),
                *(str(point.faithfulness) for point in points),
            ]
            for points in zip(*(line.points for line in self.lines), strict=True)
        ]
        for family in self._families():
            for row, spread in zip(rows, self._spreads(family), strict=True):
                row.append(str(spread))
        return [header, *rows, self._area_cells("cpr"), self._area_cells("cmd")]

    def _area_cells(self, name: str) -> list[str]:
        points = self.lines[0].points
        span = f"{name.upper()}, k {points[0].share:z.3g} to {points[-1].share:z.3g}"
        cells = [span, "", *("" for _ in self.lines)]
        cells += [str(getattr(line, name) or "–") for line in self.lines]
        areas = (self.random_area(name, connected=f == CONNECTED) for f in self._families())
        return [*cells, *(str(area or "–") for area in areas)]

    def markdown(self) -> str:
        """The table, the conditions, and why f is undefined, if it is; as Markdown."""
        return super().markdown() + (
            f"\n{markdown_text(self.undefined)}.\n" if self.undefined else ""
        )

    def figure(self) -> AnyFigure:
        """Faithfulness over k, with 95% bands, beside the range of the random circuits."""
        series = [self._band(family) for family in self._families()]
        series += [_series(line) for line in self.lines]
        about = f"{self.conditions.method}, {self.conditions}"
        return chart(
            series,
            title="Faithfulness over the share of edges kept",
            subtitle=f"{about}; {'f is undefined' if self.undefined else BANDS}",
            reading=READING,
            x_title="share of edges kept, k",
            y_title="faithfulness, f",
            x_kind="log",
            level=1.0,
            level_name="the full model",
        )

    def _band(self, family: str) -> Series:
        """The median and the range of random circuits."""
        spreads, points = self._spreads(family), self._family(family)[0].points
        kind = "random" if family == RANDOM else "random connected"
        return Series(
            f"{len(self._family(family))} {kind}, median and range",
            [point.share for point in points],
            [spread.median for spread in spreads],
            low=[spread.low for spread in spreads],
            high=[spread.high for spread in spreads],
            color=RANDOM_COLORS[family],
            dash="dot",
            hover=[f"{point.edges:,} edges" for point in points],
        )


def _plain(item: Estimate | Spread | None) -> dict[str, float | None] | None:
    return None if item is None else dict(vars(item))


def _series(line: Line) -> Series:
    values = [point.faithfulness for point in line.points]
    areas = {"signed": ("CPR", line.cpr), "absolute": ("CMD", line.cmd)}
    name, area = areas.get(line.name, ("", None))
    known = [] if area is None else [f"{name} {shown(area.value)}"]
    return Series(
        ", ".join([TITLES[line.name], *known]),
        [point.share for point in line.points],
        [value.value for value in values],
        low=[value.low for value in values],
        high=[value.high for value in values],
        color=COLORS[line.name],
        hover=[f"{point.edges:,} edges, {point.left:,} left" for point in line.points],
    )


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
    task = measured_task(vit, pairs, found, metric=metric, ablation=ablation, reference=reference)
    lines = tuple(families)
    families |= _random_families(families[lines[0]], whole(controls, "controls"), seed)
    conditions = conditions_of(task, found, bootstrap=bootstrap, seed=seed)
    circuits = [circuit for family in families.values() for _, circuit in family]
    outcome = outcome_of(task, circuits, count=len(circuits), what="Faithfulness", undefined=True)
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


@in_default_modes
def faithfulness(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
) -> float:
    """f(C) = (m(C) − m(∅)) / (m(full) − m(∅)), from means over the pairs; 1 is the full model.

    The same number as `faithfulness_curve(vit, [circuit], pairs)`, `completeness` and `minimality`
    give, whose results also say under which conditions and how sure it is.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: best ones that discovery has not seen.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`.
        ablation: what removed edges carry; by default that of discovery, for circuits made by
            hand `patch`.
        reference: images for `mean`.

    Raises:
        CircuitError: the 95% interval of m(full) − m(∅) over the pairs holds 0, or it is less than
            1.5 standard errors, so that the ratio means nothing; or the input doesn't fit.
    """
    check_vit(vit)
    check_circuit(vit, circuit)
    task = measured_task(
        vit, pairs, [circuit.provenance], metric=metric, ablation=ablation, reference=reference
    )
    outcome = outcome_of(task, [circuit], count=1, what="Circuit")
    return float(outcome.faithfulness()[0]) + 0.0  # −0 becomes 0
