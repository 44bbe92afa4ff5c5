"""How a circuit was found, as it is recorded in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from circuitvit.graph.edge_graph import ORDER


@dataclass(frozen=True)
class Provenance:
    """How a circuit was found, so that it can be found again.

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
    """What the parts of a combination agree on: their ablation, metric and model, as fields.

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
