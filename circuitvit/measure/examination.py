"""Circuits of one model put to one question: the same images, metric and ablation.

The metric is kept image by image, so that means, ratios of means and their bootstrap intervals all
come from one set of runs. What does not depend on the circuit (embeddings, the full model's logits,
ablated values) is computed once a chunk of images; circuits that differ in dangling edges only
share a run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitvit.checks import check_pairs, in_single_at_least
from circuitvit.circuit import Ablation, Circuit, Provenance
from circuitvit.edge_graph import edge_names_of
from circuitvit.errors import CircuitError, warn
from circuitvit.images import Pairs, fingerprint
from circuitvit.measure.bootstrap import resampled_means
from circuitvit.metrics import Loss, Metric, loss_of, metric_name
from circuitvit.progress import progress
from circuitvit.run_plan import RunPlan
from circuitvit.runs import Runs, images_at_once
from circuitvit.vit import ViT
from circuitvit.writes import Writes, ablated_writes

CIRCUITS_AT_ONCE = 256
VANISHED_SHARE = 0.025
"""More resamples than these without a denominator, and there is no interval."""


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
class Outcome:
    """What some circuits did, image by image.

    Attributes:
        full: m of the full model.
        empty: m with no edges.
        circuits: m of each circuit.
        left: edges of each circuit that don't dangle.
    """

    full: Float[np.ndarray, " image"]
    empty: Float[np.ndarray, " image"]
    circuits: Float[np.ndarray, "circuit image"]
    left: tuple[int, ...]

    def rows(self) -> Float[np.ndarray, "row image"]:
        """The full model, no edges, then the circuits."""
        return np.vstack([self.full, self.empty, self.circuits])

    def faithfulness(self) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of each circuit: a ratio of means over the images."""
        means = self.rows().mean(axis=1)
        return (means[2:] - means[1]) / (means[0] - means[1])

    def resampled_faithfulness(
        self, *, resamples: int, seed: int
    ) -> Float[np.ndarray, "resample circuit"]:
        """The same on images drawn with replacement; NaN where a draw has no denominator.

        Raises:
            CircuitError: that happens so often that no interval can be given.
        """
        means = resampled_means(self.rows(), resamples=resamples, seed=seed)
        full, empty = means[:, :1], means[:, 1:2]
        vanished = _vanished(full, empty)
        if vanished.mean() > VANISHED_SHARE:
            raise CircuitError(
                f"in {int(vanished.sum())} of {resamples} resamples of the {len(self.full)} images "
                "the full model does as well as no edges at all, so there is no confidence "
                "interval. Give more pairs, or a metric that varies less."
            )
        return (means[:, 2:] - empty) / np.where(vanished, np.nan, full - empty)


def _check_difference(means: Float[np.ndarray, " ends"]) -> None:
    """Refuse to divide by m(full) − m(∅) where that is nearly zero."""
    if bool(_vanished(means[:1], means[1:]).any()):
        everything, nothing = means.tolist()
        raise CircuitError(
            f"the metric is {everything:z.3g} for the full model and {nothing:z.3g} with no edges, "
            "so faithfulness is undefined. Choose pairs on which the model behaves differently."
        )


def _vanished(
    full: Float[np.ndarray, "*draw"], empty: Float[np.ndarray, "*draw"]
) -> Bool[np.ndarray, "*draw"]:
    """Where the difference of two means is hardly more than rounding."""
    return np.abs(full - empty) < 1e-6 * np.maximum(1.0, np.maximum(np.abs(full), np.abs(empty)))


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

    def outcome(self, circuits: Iterable[Circuit], *, count: int, what: str) -> Outcome:
        """Run circuits of this model; what they have in common is computed once.

        Args:
            circuits: they may be made one by one.
            count: how many there are.
            what: the work, for the progress bar.

        Raises:
            CircuitError: the metric is NaN or infinite somewhere, or nearly the same with all edges
                and with none.
        """
        full = Circuit(self.vit.config, edge_names_of(self.vit.config))
        waiting, left = iter(circuits), []
        with progress(what, (count + 2) * len(self._chunks())) as advance:
            rows = [self._losses([full, full.keeping(())], advance)]
            _check_difference(rows[0].mean(axis=1))
            while group := list(islice(waiting, CIRCUITS_AT_ONCE)):
                useful = [circuit.without_dangling(self.ablation) for circuit in group]
                left += [len(circuit) for circuit in useful]
                rows.append(self._losses(useful, advance))
        values = np.concatenate(rows)
        return Outcome(values[0], values[1], values[2:], tuple(left))

    def _chunks(self) -> list[slice]:
        """The pairs, as many at a time as go through one run."""
        images = images_at_once(self.vit)
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
