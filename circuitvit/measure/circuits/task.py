"""Circuits of one model put to one question: the same images, metric and ablation.

The metric is kept image by image, so that means, ratios of means and their bootstrap intervals
(`outcome.py`) all come from one set of runs. What does not depend on the circuit (embeddings, the
full model's logits, ablated values) is computed once a chunk of images; circuits that differ in
dangling edges only share a run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import Ablation, Circuit, Provenance
from circuitvit.graph.edge_graph import edge_names_of
from circuitvit.images import Pairs, fingerprint
from circuitvit.intervene.circuit_runs import Runs, images_in_chunk
from circuitvit.intervene.input_checks import check_pairs, in_single_at_least
from circuitvit.intervene.metrics import Loss, Metric, loss_of, metric_name
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.intervene.writer_outputs import Writes, ablated_writes
from circuitvit.measure.circuits.outcome import Outcome
from circuitvit.models.vit import ViT
from circuitvit.progress import progress

CIRCUITS_AT_ONCE = 256


@dataclass(frozen=True)
class Conditions:
    """Under which figures were obtained, so that they can be obtained again.

    Attributes:
        method: how the circuits were found.
        metric: name of m.
        ablation: what removed edges carried; None where several were compared.
        images: number of pairs.
        bootstrap: number of resamples behind the intervals.
        seed: draws resamples, and whatever else is random.
        held_out: False if discovery saw these very pairs, None if it is not known what it saw.
            Pairs that overlap in part count as held out: splitting is the caller's work.
        model: fingerprint of the weights.
        data: fingerprint of the pairs.
        reference: fingerprint of the reference images.
        versions: versions of circuitvit and torch.
    """

    method: str
    metric: str
    ablation: str | None
    images: int
    bootstrap: int
    seed: int
    held_out: bool | None
    model: str
    data: str
    reference: str | None
    versions: dict[str, str]

    def __str__(self) -> str:
        parts = [f"{self.images} pairs", self.metric]
        parts += [self.ablation] if self.ablation else []
        parts += ["the pairs of discovery, not held out"] if self.held_out is False else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Examination:
    """A checked question that circuits are put to; make it with `Examination.checked`.

    Attributes:
        vit: the model, untouched, in single precision or more.
        pairs: the image pairs, on the model's device and in its precision.
        metric: what was asked for.
        loss: the metric of some logits, one value an image.
        ablation: what removed edges carry.
        reference: images for `mean`.
        constants: what ablated writers write, where it is the same for all images (`zero`, `mean`).
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
    given_pairs: Pairs
    given_reference: Tensor | None

    @classmethod
    def checked(
        cls,
        vit: ViT,
        pairs: Pairs,
        *,
        metric: Metric,
        ablation: str,
        reference: Tensor | None,
    ) -> "Examination":
        """Check that the question makes sense for a model that has been checked itself.

        Raises:
            CircuitError: the model, pairs, metric or ablation don't fit together.
        """
        pairs, known = check_pairs(vit, pairs, ablation=ablation, reference=reference)
        reference = reference if known == "mean" else None  # else not used, so not recorded
        loss = loss_of(metric, pairs, vit.config.classes)
        given = pairs, reference
        vit, pairs, reference = in_single_at_least(vit, pairs, reference)
        constants = None
        if known != "patch":
            with torch.no_grad():
                constants = ablated_writes(vit, known, reference=reference)
        return cls(vit, pairs, metric, loss, known, reference, constants, *given)

    def conditions(self, found: Sequence[Provenance], *, bootstrap: int, seed: int) -> Conditions:
        """What is to be recorded of figures about circuits that were found so.

        It warns if discovery saw these very pairs.
        """
        data, seen_reference = self.given_pairs.fingerprint(), self.given_reference
        seen = {one.data for one in found} - {None}
        if data in seen:
            warn(
                "the circuit was found on these very pairs, so the figures flatter it. Judge it "
                "on pairs that discovery has not seen."
            )
        return Conditions(
            method=", ".join(dict.fromkeys(one.method for one in found)),
            metric=metric_name(self.metric),
            ablation=self.ablation,
            images=len(self.pairs),
            bootstrap=bootstrap,
            seed=seed,
            held_out=data not in seen if seen else None,
            model=self.vit.fingerprint(),
            data=data,
            reference=None if seen_reference is None else fingerprint(seen_reference),
            versions={"circuitvit": version("circuitvit"), "torch": version("torch")},
        )

    def outcome(
        self, circuits: Iterable[Circuit], *, count: int, what: str, undefined: bool = False
    ) -> Outcome:
        """Run circuits of this model; what they have in common is computed once.

        Args:
            circuits: they may be made one by one.
            count: how many there are.
            what: the work, for the progress bar.
            undefined: whether an outcome without a faithfulness will do.

        Raises:
            CircuitError: the metric is NaN or infinite somewhere, or faithfulness is undefined.
        """
        full = Circuit(self.vit.config, edge_names_of(self.vit.config))
        waiting, left = iter(circuits), []
        with progress(what, (count + 2) * len(self._chunks())) as advance:
            rows = [self._losses([full, full.keeping(())], advance)]
            if not undefined:  # refused before the long work
                Outcome(rows[0][0], rows[0][1], rows[0][2:], ()).refuse_undefined()
            while group := list(islice(waiting, CIRCUITS_AT_ONCE)):
                useful = [circuit.without_dangling(self.ablation) for circuit in group]
                left += [len(circuit) for circuit in useful]
                rows.append(self._losses(useful, advance))
        values = np.concatenate(rows)
        return Outcome(values[0], values[1], values[2:], tuple(left))

    def _chunks(self) -> list[slice]:
        """The pairs, as many at a time as go through one run."""
        images = images_in_chunk(self.vit)
        starts = range(0, len(self.pairs), images)
        return [slice(start, start + images) for start in starts]

    def _losses(
        self, circuits: list[Circuit], advance: Callable[..., None]
    ) -> Float[np.ndarray, "circuit image"]:
        places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        plan = RunPlan(self.vit.config, consistent=self.ablation == "patch")
        plan.add(edge_names_of(self.vit.config))  # the model, which the metric may look at
        for place, circuit in enumerate(circuits):
            same = places.setdefault((circuit.qkv, circuit.edges), [])
            if not same:
                plan.add(circuit.edges, circuit.qkv)
            same.append(place)
        values = np.empty((len(circuits), len(self.pairs)))
        with torch.no_grad():
            for images in self._chunks():
                losses = self._chunk_losses(self.pairs.subset(images), plan)
                for same, loss in zip(places.values(), losses, strict=True):
                    values[same, images] = loss
                    advance(steps=len(same))
        return values

    def _chunk_losses(self, chunk: Pairs, plan: RunPlan) -> Iterator[Float[np.ndarray, " image"]]:
        vit, ablated = self.vit, self.constants
        if ablated is None:
            ablated = ablated_writes(vit, self.ablation, corrupt=chunk.corrupt)
        runs = Runs(vit, plan, chunk.clean, ablated).logits()
        full = next(runs)
        for logits in runs:
            loss = self.loss(logits, chunk, full)
            if not bool(torch.isfinite(logits).all() & torch.isfinite(loss).all()):
                raise CircuitError(
                    f"the logits or the metric {metric_name(self.metric)} are NaN or infinite on "
                    "some image. The weights or the images are too large; look at how they were "
                    "normalised."
                )
            yield loss.cpu().double().numpy()
