"""The metric of circuits on the images of a task, and the conditions that results record.

The metric is kept image by image, so that means, ratios of means and their bootstrap intervals
(`outcome.py`) all come from one set of runs. What does not depend on the circuit (embeddings, the
full model's logits, ablated values) is computed once a chunk of images; circuits that differ in
dangling edges only share a run.

f(C) = (m(C) − m(∅)) / (m(full) − m(∅)) is a ratio that may be undefined. Where the denominator
can't be told from zero, f can be any number, and its interval is no help (Fieller 1954: it is
unbounded). Whether that is so is settled here, for every function that computes f.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import Circuit, Provenance
from circuitvit.graph.edge_graph import edge_names_of
from circuitvit.images import Pairs
from circuitvit.intervene.batching import images_in_chunk
from circuitvit.intervene.circuit_runs import Runs
from circuitvit.intervene.metrics import metric_name
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.intervene.task import PatchingTask
from circuitvit.measure.bootstrap import KnownEstimate, resampled_means
from circuitvit.progress import progress

RESAMPLES = 1000
"""Those that decide whether f is defined: the same for every function, whatever it was asked."""
LEAST_ERRORS = 1.5
"""A denominator must be at least so many of its standard errors. One or two images that make up all
of a difference of one sign (1 or √2 standard errors) leave an interval without 0."""


@dataclass(frozen=True)
class Outcome:
    """The metric of some circuits, image by image.

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

    @cached_property
    def difference(self) -> KnownEstimate:
        """The denominator of f, m(full) − m(∅), with its 95% interval over images."""
        values = (self.full - self.empty)[None]
        means = resampled_means(values, resamples=RESAMPLES, seed=0)[:, 0]
        return KnownEstimate.of(float(values.mean()), means)

    @cached_property
    def why_undefined(self) -> str | None:
        """Why f is undefined, as a sentence with the numbers; None where it is defined."""
        near = self._near_zero()
        if near is None:
            return None
        full, empty, gap = self.full.mean(), self.empty.mean(), self.difference
        return (
            f"faithfulness is undefined: the metric is {full:z.3g} for the full model and "
            f"{empty:z.3g} with no edges, so that its denominator, their difference, is "
            f"{gap.value:z.3g} (95% interval {gap.low:z.3g} to {gap.high:z.3g} over "
            f"{len(self.full)} images), which is {near}"
        )

    def _near_zero(self) -> str | None:
        """How the denominator is too close to 0; None if it isn't."""
        values, gap = self.full - self.empty, self.difference
        vanished = _vanished(self.full.mean(keepdims=True), self.empty.mean(keepdims=True))
        if vanished.any() or gap.low <= 0 <= gap.high:
            return "not clearly different from 0"
        if len(values) < 2:  # one image tells nothing of the error
            return None
        if abs(gap.value) < LEAST_ERRORS * float(values.std(ddof=1)) / len(values) ** 0.5:
            return f"less than {LEAST_ERRORS:z.1f} standard errors"
        return None

    def refuse_undefined(self) -> None:
        """Refuse to go on without a denominator.

        Raises:
            CircuitError: f is undefined.
        """
        if self.why_undefined:
            raise CircuitError(
                f"{self.why_undefined}. Give more pairs, pairs on which the model behaves "
                "differently, or another metric, such as metric='kl'."
            )

    def faithfulness(self) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of each circuit, a ratio of means over the images; NaN if undefined."""
        if self.why_undefined:
            return np.full(len(self.circuits), np.nan)
        means = self._rows().mean(axis=1)
        return (means[2:] - means[1]) / (means[0] - means[1])

    def resampled_faithfulness(
        self, *, resamples: int, seed: int
    ) -> Float[np.ndarray, "resample circuit"]:
        """The same on images drawn with replacement; NaN where a draw has no denominator."""
        means = resampled_means(self._rows(), resamples=resamples, seed=seed)
        full, empty = means[:, :1], means[:, 1:2]
        missing = _vanished(full, empty) | bool(self.why_undefined)
        return (means[:, 2:] - empty) / np.where(missing, np.nan, full - empty)

    def _rows(self) -> Float[np.ndarray, "row image"]:
        """The full model, no edges, then the circuits."""
        return np.vstack([self.full, self.empty, self.circuits])


def _vanished(
    full: Float[np.ndarray, "*draw"], empty: Float[np.ndarray, "*draw"]
) -> Bool[np.ndarray, "*draw"]:
    """Where the difference of two means is hardly more than rounding."""
    return np.abs(full - empty) < 1e-6 * np.maximum(1.0, np.maximum(np.abs(full), np.abs(empty)))


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


def conditions_of(
    task: PatchingTask, found: Sequence[Provenance], *, bootstrap: int, seed: int
) -> Conditions:
    """What is recorded of figures about circuits with these provenances.

    It warns if discovery saw these very pairs.
    """
    record = task.record()
    data, seen = record["data"], {one.data for one in found} - {None}
    if data in seen:
        warn(
            "the circuit was found on these very pairs, so the figures flatter it. Judge it "
            "on pairs that discovery has not seen."
        )
    return Conditions(
        **record,
        method=", ".join(dict.fromkeys(one.method for one in found)),
        bootstrap=bootstrap,
        seed=seed,
        held_out=data not in seen if seen else None,
    )


def outcome_of(
    task: PatchingTask,
    circuits: Iterable[Circuit],
    *,
    count: int,
    what: str,
    undefined: bool = False,
) -> Outcome:
    """Run circuits of the task's model; what they have in common is computed once.

    Args:
        task: the model, pairs, metric and ablation.
        circuits: they may be made one by one.
        count: how many there are.
        what: the work, for the progress bar.
        undefined: whether an outcome without a faithfulness will do.

    Raises:
        CircuitError: the metric is NaN or infinite somewhere, or faithfulness is undefined.
    """
    full = Circuit(task.vit.config, edge_names_of(task.vit.config))
    waiting, left = iter(circuits), []
    images = images_in_chunk(task.vit)
    with progress(what, (count + 2) * math.ceil(len(task.pairs) / images)) as advance:
        rows = [_losses(task, [full, full.keeping(())], images, advance)]
        if not undefined:  # refused before the long work
            Outcome(rows[0][0], rows[0][1], rows[0][2:], ()).refuse_undefined()
        while group := list(islice(waiting, CIRCUITS_AT_ONCE)):
            useful = [circuit.without_dangling(task.ablation) for circuit in group]
            left += [len(circuit) for circuit in useful]
            rows.append(_losses(task, useful, images, advance))
    values = np.concatenate(rows)
    return Outcome(values[0], values[1], values[2:], tuple(left))


def _losses(
    task: PatchingTask, circuits: list[Circuit], images: int, advance: Callable[..., None]
) -> Float[np.ndarray, "circuit image"]:
    """The metric of each circuit on each image; equal circuits are run once."""
    places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    plan = RunPlan(task.vit.config, consistent=task.ablation == "patch")
    plan.add(edge_names_of(task.vit.config))  # the model, which the metric may look at
    for place, circuit in enumerate(circuits):
        same = places.setdefault((circuit.qkv, circuit.edges), [])
        if not same:
            plan.add(circuit.edges, circuit.qkv)
        same.append(place)
    values, start = np.empty((len(circuits), len(task.pairs))), 0
    with torch.no_grad():
        for chunk in task.chunks(images):
            chunk_losses = _chunk_losses(task, chunk, plan)
            for same, loss in zip(places.values(), chunk_losses, strict=True):
                values[same, start : start + len(chunk)] = loss
                advance(steps=len(same))
            start += len(chunk)
    return values


def _chunk_losses(
    task: PatchingTask, chunk: Pairs, plan: RunPlan
) -> Iterator[Float[np.ndarray, " image"]]:
    runs = Runs(task.vit, plan, chunk.clean, task.ablated_writes(chunk)).logits()
    full = next(runs)
    for logits in runs:
        loss = task.loss(logits, chunk, full)
        if not bool(torch.isfinite(logits).all() & torch.isfinite(loss).all()):
            raise CircuitError(
                f"the logits or the metric {metric_name(task.metric)} are NaN or infinite on "
                "some image. The weights or the images are too large; look at how they were "
                "normalised."
            )
        yield loss.cpu().double().numpy()
