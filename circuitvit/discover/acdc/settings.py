"""The options of a search by ACDC, checked: one frozen object."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from circuitvit.checks import whole
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.resume import checked_name
from circuitvit.discover.scores import EdgeScores, names_at
from circuitvit.discover.task import discovery_task
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Circuit, Level
from circuitvit.graph.edge_graph import ORDER, Qkv, edge_names_of, edges_of
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit
from circuitvit.intervene.metrics import Metric
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.vit import ViT


@dataclass(frozen=True)
class SearchSettings:
    """The task and options of a search, τ apart; `SearchSettings.checked` makes it for `acdc`.

    Attributes:
        task: the model, pairs, metric and ablation.
        level: `edge`, `node` or `block`.
        qkv: granularity of the heads' readers.
        within: the circuit to start from; None starts from all edges.
        order: scores by which the writers of each reader are tried, weakest first; None is the
            pinned order, latest first.
        predict: scores that predict which edges stay, those with |score| ≥ τ; None predicts that
            all go.
        images: how many pairs at once; None goes by the memory that is free.
        speedups: what the engine may do to be fast.
    """

    task: PatchingTask
    level: Level = "edge"
    qkv: Qkv = "split"
    within: Circuit | None = None
    order: EdgeScores | None = None
    predict: Mapping[str, float] | None = None
    images: int | None = None
    speedups: Speedups = field(default_factory=Speedups)

    @classmethod
    def checked(
        cls,
        vit: ViT,
        pairs: Pairs,
        *,
        metric: Metric = "kl",
        ablation: Ablation = "patch",
        level: Level = "edge",
        reference: Tensor | None = None,
        qkv: Qkv = "split",
        within: Circuit | None = None,
        order: EdgeScores | None = None,
        predict: EdgeScores | None = None,
        images_at_once: int | None = None,
        speedups: Speedups | None = None,
    ) -> "SearchSettings":
        """Check everything that can be checked before work starts; arguments as of `acdc`."""
        task = discovery_task(
            vit, pairs, metric=metric, ablation=ablation, level=level, reference=reference
        )
        edges_of(vit.config, qkv)
        if images_at_once is not None and whole(images_at_once, "images_at_once") < 1:
            raise CircuitError(f"images_at_once is {images_at_once}, expected ≥ 1.")
        if not isinstance(speedups, Speedups | None):
            raise CircuitError(
                f"speedups are a {type(speedups).__name__}, expected "
                "circuitvit.discover.Speedups(...)."
            )
        for name, given in (("within", within), ("order", order), ("predict", predict)):
            _check_start(vit, name, given, level, qkv)
        return cls(task, level, qkv, within, order, predict, images_at_once, speedups or Speedups())

    @property
    def edges(self) -> tuple[str, ...]:
        """The edges that the search starts from."""
        if self.within is None:
            return edge_names_of(self.task.vit.config, self.qkv)
        return self.within.edges

    @property
    def order_name(self) -> str:
        """The order in which edges are tried, as it is recorded."""
        if self.order is None:
            return ORDER
        return f"{ORDER}, writers by |{self.order.provenance.method}|, weakest first"

    @property
    def selection(self) -> str | None:
        """The start of the search, as recorded in the provenance."""
        if self.within is None:
            return None
        origin = self.within.provenance
        return f"within {origin.selection or origin.method} of {origin.method}"

    def record(self, tau: float) -> dict[str, Any]:
        """The settings that must agree for a search to be resumed.

        Raises:
            CircuitError: the metric is a callable that can't be told from others.
        """
        origin = self.task.provenance(
            method="acdc", level=self.level, tau=tau, order=self.order_name
        )
        agree = ("level", "ablation", "metric", "order", "tau", "images", "model", "data")
        own = {name: getattr(origin, name) for name in (*agree, "reference")}
        edges = None if self.within is None else _digest(self.within.edges)
        scores = (
            None if self.order is None else _digest(f"{k} {v!r}" for k, v in self.order.items())
        )
        own["metric"] = checked_name(self.task.metric, "metric")
        return {**own, "qkv": self.qkv, "within": edges, "writers": scores}


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
