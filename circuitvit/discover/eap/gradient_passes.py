"""The passes of the gradient methods: which gradients are taken where, and of which differences.

Each method is a list of passes of the full model, whose gradients at what is read are averaged, and
multiplied with differences ã − a of what some writers write (or of neurons).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.discover.eap.activation_record import Recording, Values, record, slopes
from circuitvit.discover.eap.backward_rules import GIM, GRADIENT, RELP, Rules
from circuitvit.discover.eap.edge_products import EdgeProducts, EdgeSums, ReadGradients, Spans
from circuitvit.images import Pairs
from circuitvit.intervene.batching import images_at_once, in_batches
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.sublayers import attention_layer
from circuitvit.progress import progress

CLEAN_METHODS = {"eap": GRADIENT, "gim": GIM, "relp": RELP}
INPUT_METHODS = ("eap-ig-inputs", "clean-corrupted")
GRADIENT_METHODS = (*CLEAN_METHODS, *INPUT_METHODS, "eap-ig-activations")
PASSES_AT_ONCE = 5
"""Passes whose gradients are held until they are multiplied together."""


@dataclass(frozen=True)
class GradientPoint:
    """One pass with its gradients, and its weight in the mean over passes."""

    recording: Recording
    slopes: Values
    share: float


@dataclass(frozen=True)
class Passes:
    """Passes that are multiplied with the same differences.

    Attributes:
        differences: ã − a of the writers whose out-edges are credited, or of neurons.
        points: the passes, made one by one as they are asked for.
    """

    differences: Values
    points: Iterable[GradientPoint]


@dataclass(frozen=True)
class Attribution:
    """A gradient method for a task.

    Attributes:
        task: what is asked.
        method: one of `GRADIENT_METHODS`.
        steps: points of an interpolating method.
        bfloat16: whether passes run under autocast; sums are in the model's own precision or more.
    """

    task: PatchingTask
    method: str
    steps: int
    bfloat16: bool

    @property
    def rules(self) -> Rules:
        """The backward rules of the method."""
        return CLEAN_METHODS.get(self.method, GRADIENT)

    def edge_sums(self, spans: Spans) -> EdgeSums:
        """Sums over all pairs, for every edge."""
        products = EdgeProducts(self.task.vit, spans, frozen_norms=self.rules.frozen_norms)

        def work(batch: Pairs) -> EdgeSums:
            sums = products.zeros()
            for passes in self._passes(batch, neurons=False):
                gradients = ReadGradients()
                for count, point in enumerate(passes.points, 1):
                    products.gather(gradients, point.recording, point.slopes, share=point.share)
                    del point  # its memory is wanted for the next one
                    if count % PASSES_AT_ONCE == 0:
                        products.add(sums, passes.differences, gradients)
                        gradients = ReadGradients()
                if gradients.slopes:
                    products.add(sums, passes.differences, gradients)
            return sums

        return self._summed(work)

    def neuron_sums(self) -> dict[str, Float[Tensor, " neuron"]]:
        """Sums over all pairs for every neuron, by `m{l}`."""
        constants = self._constant_neurons()

        def work(batch: Pairs) -> Values:
            sums: Values = {}
            for passes in self._passes(batch, neurons=True, constants=constants):
                for point in passes.points:
                    for name, slope in point.slopes.items():
                        product = passes.differences[name] * slope * point.share
                        product = product.sum(dim=(0, 1), dtype=torch.float64)
                        sums[name] = sums.get(name, 0) + product
            return sums

        return self._summed(work)

    def _summed(self, work: Callable[[Pairs], Values]) -> Values:
        """The sums of the work over all pairs, batch by batch.

        Raises:
            CircuitError: memory does not suffice for one pair.
        """
        pairs, total = self.task.pairs, None
        with progress("EAP", len(pairs)) as advance:
            for batch, sums in in_batches(pairs, images_at_once(self.task.vit), work):
                total = sums if total is None else _added(total, sums)
                advance(steps=len(batch))
        assert total is not None
        return total

    def _passes(
        self, batch: Pairs, *, neurons: bool, constants: Values | None = None
    ) -> Iterator[Passes]:
        if self.method in INPUT_METHODS:
            return iter([self._input_passes(batch, neurons)])
        if self.task.ablation == "patch":
            assert batch.corrupt is not None
            ablated = self._unwatched(self._embed(batch.corrupt), neurons=neurons).written()
        else:
            ablated = constants or self._constant_writes()
        if self.method in CLEAN_METHODS:
            return iter([self._clean_pass(batch, ablated, neurons)])
        return self._activation_passes(batch, ablated)

    def _clean_pass(self, batch: Pairs, ablated: Values, neurons: bool) -> Passes:
        """The gradient at the clean images."""
        clean = self._watched(self._embed(batch.clean), neurons=neurons)
        gradients = self._slopes(clean, batch, clean.logits.detach())
        differences = _differences(ablated, clean, own=self.task.ablation == "patch")
        return Passes(differences, [GradientPoint(clean, gradients, 1.0)])

    def _input_passes(self, batch: Pairs, neurons: bool) -> Passes:
        """Gradients at points on the line from the corrupt to the clean embeddings.

        The corrupt end is the pass that gives ã.
        """
        assert batch.corrupt is not None
        clean = self._unwatched(self._embed(batch.clean), neurons=neurons)
        corrupt = self._watched(self._embed(batch.corrupt), neurons=neurons)
        shares = [1.0]
        if self.method == "eap-ig-inputs":
            shares = [k / self.steps for k in range(1, self.steps)]
        start, full, weight = corrupt.embedded, clean.logits, 1 / (1 + len(shares))
        whole, differences = clean.embedded - start, _differences(corrupt.written(), clean)
        waiting = [GradientPoint(corrupt, self._slopes(corrupt, batch, full), weight)]

        def points() -> Iterator[GradientPoint]:
            yield waiting.pop()
            for share in shares:
                yield self._point(start + share * whole, batch, full, weight, neurons=neurons)

        return Passes(differences, points())

    def _activation_passes(self, batch: Pairs, ablated: Values) -> Iterator[Passes]:
        """Gradients with one writer group moved at a time, for that group's out-edges.

        The last point of every group is the clean run itself, which is shared by all of them.
        """
        clean = self._watched(self._embed(batch.clean))
        full = clean.logits.detach()
        gradients = self._slopes(clean, batch, full)
        differences = _differences(ablated, clean, own=self.task.ablation == "patch")
        yield Passes(differences, [GradientPoint(clean, gradients, 1 / self.steps)])
        readers = list(clean.streams)
        for name, difference in differences.items():
            reader = readers[0 if name == "embed" else readers.index(name) + 1]
            stream, place = clean.streams[reader], self._start(reader)
            move = self._written(name, difference)

            def points(
                place: int = place, stream: Tensor = stream, move: Tensor = move
            ) -> Iterator[GradientPoint]:
                for step in range(1, self.steps):
                    moved = stream + (1 - step / self.steps) * move
                    yield self._point(moved, batch, full, 1 / self.steps, start=place)

            if self.steps > 1:
                yield Passes({name: difference}, points())

    def _written(self, name: str, value: Tensor) -> Float[Tensor, "image token width"]:
        """What a sub-layer's writers add to the stream, given z of heads."""
        if not name.startswith("a"):
            return value
        layer = attention_layer(self.task.vit, int(name[1:]))
        weight = layer.attention.output_weight().detach()
        return torch.einsum("ihtd,hdw->itw", value.to(weight.dtype), weight)

    def _start(self, reader: str) -> int:
        if reader == "logits":
            return 2 * self.task.vit.config.depth
        return 2 * int(reader[1:]) + reader.startswith("m")

    def _constant_writes(self) -> Values:
        """ã of every writer where it is the same for all images."""
        written = self.task.constants
        assert written is not None
        named = {"embed": written.embed}
        for index, (z, mlp) in enumerate(zip(written.z, written.mlp, strict=True)):
            named |= {} if z is None else {f"a{index}": z}
            named |= {} if mlp is None else {f"m{index}": mlp}
        return named

    def _constant_neurons(self) -> Values | None:
        """ã of every neuron where it is the same for all images."""
        task, device = self.task, self.task.vit.positions.device
        if task.ablation == "patch":
            return None
        if task.ablation == "zero":
            zero = task.vit.positions.new_zeros(1, 1, 1)
            return {f"m{block}": zero for block in range(task.vit.config.depth)}
        assert task.reference is not None
        total: Values = {}
        for images in task.reference.to(device).split(images_at_once(task.vit)):
            posts = self._unwatched(self._embed(images), neurons=True).written()
            sums = {name: post.sum(dim=0, dtype=torch.float64) for name, post in posts.items()}
            total = _added(total, sums) if total else sums
        dtype = task.vit.positions.dtype
        return {name: (value / len(task.reference)).to(dtype) for name, value in total.items()}

    def _embed(self, images: Tensor) -> Float[Tensor, "image token width"]:
        with torch.no_grad(), self._precision():
            return self.task.vit.embed(images)

    def _unwatched(self, stream: Tensor, *, neurons: bool) -> Recording:
        with torch.no_grad(), self._precision():
            return record(self.task.vit, stream, neurons=neurons)

    def _watched(self, stream: Tensor, *, start: int = 0, neurons: bool = False) -> Recording:
        vit = self.task.vit
        with torch.enable_grad(), self._precision():
            return record(vit, stream, start=start, rules=self.rules, neurons=neurons)

    def _point(
        self,
        stream: Tensor,
        batch: Pairs,
        full: Tensor,
        share: float,
        *,
        start: int = 0,
        neurons: bool = False,
    ) -> GradientPoint:
        recording = self._watched(stream, start=start, neurons=neurons)
        return GradientPoint(recording, self._slopes(recording, batch, full), share)

    def _slopes(self, recording: Recording, batch: Pairs, full: Tensor) -> Values:
        with torch.enable_grad():
            return slopes(recording, lambda logits: self.task.loss(logits, batch, full))

    def _precision(self) -> AbstractContextManager[object]:
        device = self.task.vit.positions.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bfloat16)


def _differences(ablated: Values, clean: Recording, *, own: bool = False) -> Values:
    """ã − a of whatever was written at the clean run's tokens, in forward order.

    Where ã is nobody else's (`own`), the differences take its place.
    """
    written = clean.written()
    if own:
        return {name: ablated[name].sub_(value) for name, value in written.items()}
    tokens = {name: slice(0, value.shape[-2]) for name, value in written.items()}
    return {name: ablated[name][..., tokens[name], :] - value for name, value in written.items()}


def _added(one: Values, other: Values) -> Values:
    return {name: value + other[name] for name, value in one.items()}
