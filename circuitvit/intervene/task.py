"""A patching task: a model, image pairs, a metric and an ablation, checked once.

Discovery asks it which edges matter, the measures of circuits ask it what a circuit keeps. What
either records of it is here too; how circuits are run is not.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.circuit import Ablation, Provenance
from circuitvit.images import Pairs, fingerprint
from circuitvit.intervene.input_checks import check_pairs, check_vit, in_single_at_least
from circuitvit.intervene.metrics import Loss, Metric, loss_of, metric_name
from circuitvit.intervene.writer_outputs import Writes, ablated_writes
from circuitvit.models.vit import ViT


@dataclass(frozen=True)
class PatchingTask:
    """A patching task; make it with `PatchingTask.checked`.

    A model in half precision is replaced by a copy in single precision with the same weights: what
    an edge changes is mostly smaller than the rounding error of half precision.

    Attributes:
        vit: the model, untouched, in single precision or more.
        pairs: the image pairs, on the model's device and in its precision.
        metric: the metric as the caller gave it.
        loss: the metric as a function of logits, one value an image.
        ablation: what removed edges carry.
        reference: images for `mean`.
        constants: what ablated writers write, where it is the same for all images (`zero`, `mean`).
        given_dtype: the precision of the caller's model.
        given_pairs: the caller's pairs, for the record.
        given_reference: the caller's reference, for the record.
    """

    vit: ViT
    pairs: Pairs
    metric: Metric
    loss: Loss
    ablation: Ablation
    reference: Tensor | None
    constants: Writes | None
    given_dtype: torch.dtype
    given_pairs: Pairs
    given_reference: Tensor | None

    @classmethod
    def checked(
        cls, vit: ViT, pairs: Pairs, *, metric: Metric, ablation: str, reference: Tensor | None
    ) -> "PatchingTask":
        """Check that model, pairs, metric and ablation fit together, before work starts.

        Args:
            vit: the model.
            pairs: clean images, with what the ablation and the metric need.
            metric: a name or a callable.
            ablation: `patch`, `zero` or `mean`.
            reference: images for `mean`, [image channel height width]; else not used.

        Raises:
            CircuitError: they don't.
        """
        check_vit(vit)
        pairs, known = check_pairs(vit, pairs, ablation=ablation, reference=reference)
        reference = reference if known == "mean" else None  # else not used, so not recorded
        loss = loss_of(metric, pairs, vit.config.classes)
        given = vit.positions.dtype, pairs, reference
        vit, pairs, reference = in_single_at_least(vit, pairs, reference)
        constants = None
        if known != "patch":
            with torch.no_grad():
                constants = ablated_writes(vit, known, reference=reference)
        return cls(vit, pairs, metric, loss, known, reference, constants, *given)

    def ablated_writes(self, pairs: Pairs) -> Writes:
        """What ablated writers write, for some of the pairs."""
        if self.constants is not None:
            return self.constants
        with torch.no_grad():
            return ablated_writes(self.vit, self.ablation, corrupt=pairs.corrupt)

    def ablated(self, pairs: Pairs) -> Float[Tensor, " writer #image #token #width"]:
        """ã of every writer for some of the pairs."""
        with torch.no_grad():
            return self.ablated_writes(pairs).values(self.vit)

    def chunks(self, images: int) -> Iterator[Pairs]:
        """The pairs, at most so many at a time."""
        for start in range(0, len(self.pairs), images):
            yield self.pairs.subset(slice(start, start + images))

    def mean_loss(
        self, logits: Float[Tensor, "image class"], full: Float[Tensor, "image class"]
    ) -> float:
        """The metric, averaged over all pairs."""
        return float(self.loss(logits, self.pairs, full).double().mean())

    def record(self) -> dict[str, Any]:
        """What a result records of the task: metric, images, fingerprints, versions."""
        reference = self.given_reference
        return {
            "metric": metric_name(self.metric),
            "ablation": self.ablation,
            "images": len(self.given_pairs),
            "model": self.vit.fingerprint(),
            "data": self.given_pairs.fingerprint(),
            "reference": None if reference is None else fingerprint(reference),
            "versions": {"circuitvit": version("circuitvit"), "torch": version("torch")},
        }

    def provenance(self, **details: Any) -> Provenance:
        """What a circuit found on this task records, with the method's own details."""
        return Provenance(**self.record(), pairs=copy.deepcopy(self.given_pairs.recipe), **details)
