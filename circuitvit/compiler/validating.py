"""Pass: every reason why a circuit can't be compiled, and the check of the compiled model.

All reasons are collected before any work starts. The compiled model is compared with the masked
run, always.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.checks import real, whole
from circuitvit.compiler.passes.neurons import Ratio, neuron_reasons
from circuitvit.config import ViTConfig
from circuitvit.discover import EdgeScores
from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.edge_graph import Qkv
from circuitvit.intervene.ablated_run import EdgeMask, RemovedNeurons, run_embedded
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.writer_outputs import IMAGES_AT_ONCE
from circuitvit.measure.models.cost_table import Costs
from circuitvit.models.history import check_history
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import evaluating

MULTIPLE = 16
"""What MLP widths are snapped up to by default."""

SAMPLE_IMAGES = 8
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Targets = Mapping[str, float | None]
"""Shares of the dense model's cost, by `target_latency`, `target_macs` and `target_parameters`."""


@dataclass(frozen=True)
class Options:
    """What can be asked for beside the circuit's units; see `compile`."""

    neurons: EdgeScores | None
    keep_ratio: Ratio | None
    multiple: int
    fresh: bool
    seed: int
    targets: Targets
    costs: Costs | None

    def given(self) -> dict[str, bool]:
        """Which were asked for, by name."""
        targets = {name: share is not None for name, share in self.targets.items()}
        return {
            "neurons": self.neurons is not None,
            "keep_ratio": self.keep_ratio is not None,
            "multiple": self.multiple != MULTIPLE,
            "fresh": bool(self.fresh),
            "seed": self.seed != 0,
            **targets,
            "costs": self.costs is not None,
        }


def compiled_under(circuit: Circuit, asked: Ablation | None, *, fresh: bool = False) -> Ablation:
    """The ablation to compile a circuit under: the one asked for, else that of discovery.

    The default is `zero` for a circuit that wasn't found under `mean`, and for fresh weights.

    Raises:
        CircuitError: parts of the circuit were found under `mean`, and others under another.
    """
    if asked is not None:
        return asked
    known = circuit.provenance.known("ablation") if isinstance(circuit, Circuit) else ()
    if fresh or "mean" not in known:
        return "zero"
    if len(known) > 1:
        raise CircuitError(
            f"parts of this circuit were found under {', '.join(known)}, so it must be said what "
            "removed units are to write. Give ablation='zero', or ablation='mean' with "
            "reference=images."
        )
    return "mean"


def warn_of_zero(circuit: Circuit, asked: Ablation | None, *, fresh: bool) -> None:
    """Say so where a circuit that was found under `mean` is to be compiled under `zero`."""
    found_under_mean = isinstance(circuit, Circuit) and circuit.provenance.ablation == "mean"
    if asked == "zero" and found_under_mean and not fresh:
        warn(
            "the circuit was found under 'mean' and is compiled under 'zero', as asked: units that "
            "it removes write nothing, where they wrote their mean, so the model may do worse than "
            "the circuit. ablation='mean' with reference=images keeps what was found."
        )


def check_compilable(
    vit: ViT,
    circuit: Circuit,
    *,
    level: str,
    ablation: str,
    reference: Tensor | None,
    options: Options,
) -> None:
    """Refuse what can't be compiled.

    Raises:
        CircuitError: names every reason.
    """
    check_vit(vit)
    check_history(vit.history)
    reasons = list(_reasons(vit, circuit, level, ablation, reference))
    reasons += _option_reasons(vit, circuit, level, options)
    if reasons:
        raise CircuitError("this can't be compiled: " + "; ".join(reasons) + ".")


def _reasons(
    vit: ViT, circuit: Circuit, level: str, ablation: str, reference: Tensor | None
) -> Iterator[str]:
    if level not in ("unit", "edge"):
        yield f"level is {level!r}, expected 'unit' or 'edge'"
    yield from _ablation_reasons(ablation, reference)
    if reference is not None and not isinstance(reference, Tensor):
        yield f"reference is a {type(reference).__name__}, expected a tensor of images"
    elif reference is not None and (reference.ndim == 0 or len(reference)):
        try:
            vit.check_images(reference, name="reference images")
        except CircuitError as cause:
            yield str(cause).rstrip(".")
        if not bool(torch.isfinite(reference).all()):
            yield "the reference images hold NaN or infinity"
    try:
        check_circuit(vit, circuit)
    except CircuitError as cause:
        yield str(cause).rstrip(".")


def _option_reasons(vit: ViT, circuit: Circuit, level: str, options: Options) -> Iterator[str]:
    if level == "edge":
        refused = [name for name, value in options.given().items() if value]
        if refused:
            yield f"{', '.join(refused)} go with level='unit', not with 'edge'"
    yield from neuron_reasons(vit, options.neurons, options.keep_ratio, options.multiple)
    yield from budget_reasons(vit.config, circuit, options.targets, options.costs)
    try:
        whole(options.seed, "seed")
    except CircuitError as cause:
        yield str(cause).rstrip(".")


def _ablation_reasons(ablation: str, reference: Tensor | None) -> Iterator[str]:
    if ablation == "patch":
        yield (
            "ablation='patch' needs a corrupt image at run time, use ablation='zero' or 'mean' "
            "(the ablation under which the circuit was found does not matter)"
        )
    elif ablation not in ("zero", "mean"):
        yield f"ablation is {ablation!r}, expected 'zero' or 'mean'"
    elif ablation == "mean" and (
        reference is None or (isinstance(reference, Tensor) and reference.shape[:1] == (0,))
    ):
        yield (
            "ablation='mean' needs reference images, give reference=images (it is the default for "
            "a circuit that was found under it)"
        )


def budget_reasons(
    config: ViTConfig, circuit: object, targets: Targets, costs: object
) -> Iterator[str]:
    """Why such a budget can't be kept."""
    given = {name: share for name, share in targets.items() if share is not None}
    if len(given) > 1:
        yield f"{' and '.join(given)} are given, expected one budget at most"
    for name, share in given.items():
        try:
            if not 0 < real(share, name) <= 1:
                yield f"{name} is {share}, expected a share above 0 and at most 1"
        except CircuitError as cause:
            yield str(cause).rstrip(".")
    if given and isinstance(circuit, Circuit) and not circuit.units():
        yield f"{' and '.join(given)} drop units, but this circuit has none on a kept path"
    if costs is not None:
        yield from _cost_reasons(config, costs, given)


def _cost_reasons(config: ViTConfig, costs: object, given: Mapping[str, object]) -> Iterator[str]:
    if "target_latency" not in given:
        yield "costs go with target_latency only"
    if not isinstance(costs, Costs):
        yield f"costs are a {type(costs).__name__}, expected what cv.measure_costs(config) gives"
    elif costs.differing(config):
        yield (
            f"the costs were measured for a ViT with another {', '.join(costs.differing(config))}; "
            "use cv.measure_costs(vit.config)"
        )


@torch.no_grad()
def verify(
    vit: ViT,
    compiled: nn.Module,
    edges: Iterable[str],
    ablated: Float[Tensor, " writer #image #token #width"],
    *,
    reference: Tensor | None,
    qkv: Qkv = "split",
    neurons: Mapping[int, RemovedNeurons] | None = None,
) -> None:
    """Refuse a compiled model that differs from the run that keeps just these edges.

    The removed neurons of the MLPs that stay give theirs, too.

    Raises:
        CircuitError: the largest difference exceeds the tolerance.
    """
    images = sample_images(vit) if reference is None or not len(reference) else reference
    mask = EdgeMask.of(vit.config, edges, qkv)
    differences, largest = [], 1.0
    for chunk in images.to(vit.positions.device).split(IMAGES_AT_ONCE):
        expected = run_embedded(vit, vit.embed(chunk), mask, ablated, neurons=neurons).logits
        with evaluating(compiled):
            found = compiled(chunk)
        differences.append((found - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    error = float(torch.stack(differences).amax())  # NaN, if there is one
    allowed = TOLERANCE.get(images.dtype, 1e-1) * largest
    if not error <= allowed:
        raise CircuitError(
            f"the compiled model differs from the masked run by {error:z.2g}, allowed are "
            f"{allowed:z.2g}. It is not returned; please report this with the circuit's file."
        )


def sample_images(vit: ViT) -> Float[Tensor, "image channel height width"]:
    """8 seeded normal images of the model's shape, dtype and device."""
    config = vit.config
    shape = (SAMPLE_IMAGES, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images.to(vit.positions)
