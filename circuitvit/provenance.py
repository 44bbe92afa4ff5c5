"""How a circuit was found, as it is recorded in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from circuitvit.edge_graph import ORDER


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

    OPTIONAL: ClassVar[frozenset[str]]
    """Fields that a file may lack: they came one after the other."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; `pairs` only where there is a recipe."""
        told = asdict(self)
        if told["pairs"] is None:  # as files were before there were recipes
            del told["pairs"]
        return told


Provenance.OPTIONAL = frozenset(field.name for field in fields(Provenance))
