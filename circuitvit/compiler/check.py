"""Pass: every reason why a circuit can't be compiled, collected before work starts."""

from collections.abc import Iterator

import torch
from torch import Tensor

from circuitvit.checks import check_circuit, check_vit
from circuitvit.circuit import Circuit
from circuitvit.errors import CircuitError
from circuitvit.vit import ViT


def check(
    vit: ViT, circuit: Circuit, *, level: str, ablation: str, reference: Tensor | None
) -> None:
    """Refuse what can't be compiled.

    Raises:
        CircuitError: names every reason.
    """
    check_vit(vit)
    reasons = list(_reasons(vit, circuit, level, ablation, reference))
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
    elif reference is not None and len(reference):
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


def _ablation_reasons(ablation: str, reference: Tensor | None) -> Iterator[str]:
    if ablation == "patch":
        yield (
            "ablation='patch' needs a corrupt image at run time, use ablation='zero' or 'mean' "
            "(the ablation under which the circuit was found does not matter)"
        )
    elif ablation not in ("zero", "mean"):
        yield f"ablation is {ablation!r}, expected 'zero' or 'mean'"
    elif ablation == "mean" and (reference is None or len(reference) == 0):
        yield "ablation='mean' needs reference images, give reference=images"
