"""Checks before and after compiling.

Before any work starts, every reason why a circuit can't be compiled is collected. Afterwards, the
compiled model's logits are compared with those of the masked run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.checks import real, whole
from circuitvit.compiler.passes.neurons import Ratio
from circuitvit.config import ViTConfig
from circuitvit.discover import EdgeScores
from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import Ablation, Circuit, same_edge_set
from circuitvit.graph.edge_graph import Qkv
from circuitvit.intervene.ablated_run import EdgeMask, RemovedNeurons, run_embedded
from circuitvit.intervene.batching import IMAGES_AT_ONCE
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.measure.models.cost import Costs
from circuitvit.models.history import check_history
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import evaluating

MULTIPLE = 16
"""By default, MLP widths are rounded up to a multiple of this."""

SAMPLE_IMAGES = 8
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of logits, as a share of max(1, max|logit|)."""


@dataclass(frozen=True)
class Options:
    """Arguments of `compile` that only `level="unit"` has.

    `targets` are shares of the dense model's cost, by `target_latency`, `target_macs` and
    `target_parameters`.
    """

    neurons: EdgeScores | None
    keep_ratio: Ratio | None
    multiple: int
    fresh: bool
    seed: int
    targets: Mapping[str, float | None]
    costs: Costs | None

    def given(self) -> list[str]:
        """The names of the arguments that don't have their default."""
        defaults = {"multiple": MULTIPLE, "fresh": False, "seed": 0}
        values = {**vars(self), **self.targets}
        del values["targets"]
        return [
            name
            for name, value in values.items()
            if (value != defaults[name] if name in defaults else value is not None)
        ]

    def budget(self) -> tuple[str, float] | None:
        """The name and share of the target, if one is given."""
        given = ((name, share) for name, share in self.targets.items() if share is not None)
        return next(((name, float(share)) for name, share in given), None)


def compiled_under(circuit: Circuit, given: Ablation | None, *, fresh: bool = False) -> Ablation:
    """The ablation to compile a circuit under: the given one, else that of discovery.

    The default is `zero` for a circuit that wasn't found under `mean`, and for fresh weights.

    Raises:
        CircuitError: some parts of the circuit were found under `mean`, and others weren't.
    """
    if given is not None:
        return given
    known = circuit.provenance.known("ablation") if isinstance(circuit, Circuit) else ()
    if fresh or "mean" not in known:
        return "zero"
    if len(known) > 1:
        raise CircuitError(
            f"parts of this circuit were found under {', '.join(known)}, so there is no default "
            "for what removed units write. Give ablation='zero', or ablation='mean' with "
            "reference=images."
        )
    return "mean"


def warn_of_zero(circuit: Circuit, given: Ablation | None, *, fresh: bool) -> None:
    """Warn where a circuit that was found under `mean` is compiled under `zero`."""
    found_under_mean = isinstance(circuit, Circuit) and circuit.provenance.ablation == "mean"
    if given == "zero" and found_under_mean and not fresh:
        warn(
            "the circuit was found under 'mean' and is compiled under 'zero': removed units write "
            "nothing instead of their mean, so the model may do worse than the circuit. "
            "ablation='mean' with reference=images keeps what was found."
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
    """Refuse arguments that can't be compiled.

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
        yield from _refusal(vit.check_images, reference, name="reference images")
        if not bool(torch.isfinite(reference).all()):
            yield "the reference images hold NaN or infinity"
    yield from _refusal(check_circuit, vit, circuit)


def _refusal(check: Callable[..., object], *arguments: Any, **named: Any) -> Iterator[str]:
    """The message of a check that fails, without its full stop."""
    try:
        check(*arguments, **named)
    except CircuitError as cause:
        yield str(cause).rstrip(".")


def _option_reasons(vit: ViT, circuit: Circuit, level: str, options: Options) -> Iterator[str]:
    if level == "edge" and (given := options.given()):
        yield f"{', '.join(given)} go with level='unit', not with 'edge'"
    yield from _neuron_reasons(vit.config, options)
    yield from _budget_reasons(vit.config, circuit, options)
    yield from _refusal(whole, options.seed, "seed")


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


def _budget_reasons(config: ViTConfig, circuit: object, options: Options) -> Iterator[str]:
    given = {name: share for name, share in options.targets.items() if share is not None}
    names, costs = " and ".join(given), options.costs
    if len(given) > 1:
        yield f"{names} are given, expected one budget at most"
    for name, share in given.items():
        yield from _refusal(_check_share, share, name)
    if given and isinstance(circuit, Circuit) and not circuit.units():
        yield f"{names} drop units, but this circuit has none on a kept path"
    if costs is not None and "target_latency" not in given:
        yield "costs go with target_latency only"
    if not isinstance(costs, Costs | None):
        yield f"costs are a {type(costs).__name__}, expected the result of cv.measure_costs(config)"
    elif costs is not None and (differing := costs.differing(config)):
        yield (
            f"the costs were measured for a ViT with another {', '.join(differing)}; use "
            "cv.measure_costs(vit.config)"
        )


def _check_share(value: object, name: str) -> None:
    if not 0 < real(value, name) <= 1:
        raise CircuitError(f"{name} is {value}, expected a share above 0 and at most 1.")


def _neuron_reasons(config: ViTConfig, options: Options) -> Iterator[str]:
    scores: object = options.neurons
    if scores is not None:
        yield from _score_reasons(config, scores)
        yield from _ratio_reasons(config, options.keep_ratio)
    elif options.keep_ratio is not None:
        yield "keep_ratio needs neurons=scores, as cv.eap(..., level='neuron') returns them"
    yield from _refusal(_check_multiple, options.multiple)


def _check_multiple(value: object) -> None:
    if whole(value, "multiple") < 1:
        raise CircuitError(f"multiple is {value}, expected ≥ 1.")


def _score_reasons(config: ViTConfig, scores: object) -> Iterator[str]:
    expected = "cv.eap(..., level='neuron')"
    if not isinstance(scores, EdgeScores):
        yield f"neurons are a {type(scores).__name__}, expected the scores of {expected}"
    elif scores.provenance.level != "neuron":
        yield f"neurons are scores of {scores.provenance.level}s, expected those of {expected}"
    elif not same_edge_set(config, scores.config) or config.mlp_width != scores.config.mlp_width:
        yield (
            f"the neuron scores belong to another model, with heads {scores.config.heads} and "
            f"MLPs {scores.config.mlp_width}; score the neurons of this one"
        )


def _ratio_reasons(config: ViTConfig, keep_ratio: object) -> Iterator[str]:
    if keep_ratio is None:
        yield "neurons need keep_ratio, the share of them to keep, such as 0.5"
    elif not isinstance(keep_ratio, Mapping):
        yield from _refusal(_check_share, keep_ratio, "keep_ratio")
    else:
        for block, ratio in keep_ratio.items():
            if not (block in range(config.depth) and config.mlp_width[block]):
                yield f"keep_ratio names block {block!r}, which has no MLP"
            yield from _refusal(_check_share, ratio, f"keep_ratio of block {block!r}")


def warn_of_other_weights(vit: ViT, neurons: EdgeScores) -> None:
    """Warn where the neurons were scored on other weights than these."""
    known = neurons.provenance.model
    if known is not None and known != vit.fingerprint():
        warn(
            f"these neurons were scored on other weights (fingerprint {known}), so their scores "
            "may mean nothing here. Score them again on this model to be sure."
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
    """Refuse a compiled model whose logits differ from those of the run with these edges alone.

    In that run, removed neurons of the kept MLPs have their ablated values too.

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
    error = float(torch.stack(differences).amax())  # unlike max(), this keeps NaN
    allowed = TOLERANCE.get(images.dtype, 1e-1) * largest
    if not error <= allowed:
        raise CircuitError(
            f"the compiled model differs from the masked run by {error:z.2g}, allowed is "
            f"{allowed:z.2g}. It is not returned; please report this with the circuit's file."
        )


def sample_images(vit: ViT) -> Float[Tensor, "image channel height width"]:
    """8 seeded normal images of the model's shape, dtype and device."""
    config = vit.config
    shape = (SAMPLE_IMAGES, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images.to(vit.positions)
