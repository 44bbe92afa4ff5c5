"""What a discovery is asked: the model, the pairs, the metric and the ablation, checked once."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Level, Provenance
from circuitvit.images import Pairs, fingerprint
from circuitvit.images.pairs.paired_images import warn_of_same
from circuitvit.intervene.input_checks import check_pairs, check_vit, in_single_at_least
from circuitvit.intervene.metrics import Loss, Metric, loss_of, metric_name
from circuitvit.intervene.writer_outputs import Writes, ablated_writes
from circuitvit.models.vit import ViT


@dataclass(frozen=True)
class Problem:
    """A checked question to `acdc` or `eap`; make it with `Problem.checked`.

    A model in half precision is asked as a copy in single, with the same weights: what an edge
    changes is mostly smaller than the rounding error of half precision.

    Attributes:
        vit: the model, untouched, in single precision or more.
        pairs: the image pairs, on the model's device and in its precision.
        metric: what was asked for.
        loss: the metric of some logits, one value an image.
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
        cls,
        vit: ViT,
        pairs: Pairs,
        *,
        metric: Metric,
        ablation: Ablation,
        level: str,
        reference: Tensor | None,
        levels: tuple[str, ...] = get_args(Level),
    ) -> "Problem":
        """Check everything that can be checked before work starts; `levels` are the caller's.

        Raises:
            CircuitError: the model, pairs, metric, level or ablation don't fit together.
        """
        check_vit(vit)
        if level not in levels:
            raise CircuitError(f"level is {level!r}, expected one of {levels}.")
        pairs, ablation = check_pairs(vit, pairs, ablation=ablation, reference=reference)
        if ablation == "patch":  # some were told of when the pairs were made
            warn_of_same(pairs.clean, pairs.corrupt, least=len(pairs))
        reference = reference if ablation == "mean" else None  # else not used, so not recorded
        loss = loss_of(metric, pairs, vit.config.classes)
        given = {
            "given_dtype": vit.positions.dtype,
            "given_pairs": pairs,
            "given_reference": reference,
        }
        vit, pairs, reference = in_single_at_least(vit, pairs, reference)
        constants = None
        if ablation != "patch":
            with torch.no_grad():
                constants = ablated_writes(vit, ablation, reference=reference)
        return cls(vit, pairs, metric, loss, ablation, reference, constants, **given)

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

    def provenance(self, **details: Any) -> Provenance:
        """What is recorded of this problem, with the method's own details."""
        reference, pairs = self.given_reference, self.given_pairs
        return Provenance(
            ablation=self.ablation,
            metric=metric_name(self.metric),
            images=len(pairs),
            model=self.vit.fingerprint(),
            data=pairs.fingerprint(),
            pairs=copy.deepcopy(pairs.recipe),
            reference=None if reference is None else fingerprint(reference),
            versions={"circuitvit": version("circuitvit"), "torch": version("torch")},
            **details,
        )
