"""Checks of the arguments that many public functions share: model, circuit, ablation, images."""

import copy
from typing import cast, get_args

import torch
from torch import Tensor

from circuitvit.errors import CircuitError, warn
from circuitvit.graph.circuit import Ablation, Circuit, same_edge_set
from circuitvit.images import Pairs
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import HALF, in_single


def check_vit(vit: object) -> None:
    """Refuse anything but a plain ViT with finite weights.

    Raises:
        CircuitError: as it says.
    """
    if isinstance(vit, CircuitViT):
        raise CircuitError(
            "expected a circuitvit.ViT, got CircuitViT: a circuit that was compiled with "
            "level='edge' has no edges to work on. Take the model that it was compiled from."
        )
    if not isinstance(vit, ViT):
        raise CircuitError(f"expected a circuitvit.ViT, got {type(vit).__name__}. {_remedy(vit)}")
    vit.check_weights()


def _remedy(model: object) -> str:
    """The remedy: how to get the `ViT`."""
    if hasattr(model, "merge_and_unload"):
        return "Merge its adapters first: model.merge_and_unload() gives the plain model."
    if isinstance(getattr(model, "backbone", None), ViT):
        return "An adapter can't be folded into a ViT; give the model that it was trained in."
    for inside in ("_orig_mod", "module", "vit"):
        if isinstance(getattr(model, inside, None), ViT):
            return f"Give the ViT inside it: model.{inside}."
    return "circuitvit.load_vit(model) makes one."


def check_circuit(vit: ViT, circuit: object) -> None:
    """Refuse a circuit of a model with other edges; warn where only the weights differ.

    Raises:
        CircuitError: it is no circuit, or belongs to a ViT with another edge set.
    """
    if not isinstance(circuit, Circuit):
        raise CircuitError(
            f"expected a circuitvit.Circuit, got {type(circuit).__name__}. Scores give one with "
            "scores.top(n); edge names with Circuit(vit.config, names)."
        )
    if not same_edge_set(vit.config, circuit.config):
        raise CircuitError(
            f"this circuit belongs to another model: it has heads {circuit.config.heads} and MLPs "
            f"{circuit.config.mlp_width}, this ViT heads {vit.config.heads} and MLPs "
            f"{vit.config.mlp_width}. Find a circuit on this model."
        )
    known = circuit.provenance.model
    if known is None or known == vit.fingerprint():
        return
    what = "other weights of the same shape"
    if circuit.config != vit.config:
        what = "a model of another shape that has the same edges"
    warn(
        f"this circuit was found on {what} (fingerprint {known}), so it may explain nothing here. "
        "Find it again on this model to be sure."
    )


def check_ablation(ablation: str, *, corrupt: Tensor | None, reference: Tensor | None) -> None:
    """Refuse an ablation that is unknown or lacks its images.

    Raises:
        CircuitError: as it says.
    """
    if ablation not in get_args(Ablation):
        raise CircuitError(f"ablation is {ablation!r}, expected one of {get_args(Ablation)}.")
    if ablation == "patch" and corrupt is None:
        raise CircuitError(
            "ablation='patch' needs corrupt images, but the pairs have none. Give "
            "Pairs(corrupt=...), or use ablation='zero' or 'mean'."
        )
    if ablation != "mean":
        return
    if reference is None or (isinstance(reference, Tensor) and len(reference) == 0):
        raise CircuitError(
            "ablation='mean' needs reference images to take the mean over. Give reference=images."
        )
    if not isinstance(reference, Tensor):
        raise CircuitError(
            f"reference is a {type(reference).__name__}, expected a tensor [image channel height "
            "width], such as splits.train.images."
        )


def check_pairs(
    vit: ViT, pairs: object, *, ablation: str, reference: Tensor | None
) -> tuple[Pairs, Ablation]:
    """Refuse pairs that the model can't see, or that the ablation can't do with.

    Returns:
        The same pairs and ablation, known for what they are.

    Raises:
        CircuitError: as it says.
    """
    if not isinstance(pairs, Pairs):
        raise CircuitError(
            f"pairs are a {type(pairs).__name__}, expected circuitvit.Pairs(clean=..., "
            "corrupt=..., labels=..., corrupt_labels=...)."
        )
    check_ablation(ablation, corrupt=pairs.corrupt, reference=reference)
    for name, images in (("clean", pairs.clean), ("corrupt", pairs.corrupt)):
        if images is not None:
            vit.check_images(images, name=f"{name} images")
            check_finite(images, name=f"{name} images")
    return pairs, cast(Ablation, ablation)


def in_single_at_least(
    vit: ViT, pairs: Pairs, reference: Tensor | None
) -> tuple[ViT, Pairs, Tensor | None]:
    """Model and images for measuring what edges do: in half precision, copies in single.

    The weights and pixels are the same; what an edge changes is mostly smaller than the rounding
    error of half precision. The pairs come on the model's device.
    """
    pairs = pairs.to(device=vit.positions.device)
    if vit.positions.dtype not in HALF:
        return vit, pairs, reference
    reference = None if reference is None else in_single(reference)
    return copy.deepcopy(vit).float(), pairs.to(dtype=torch.float32), reference


def check_finite(images: Tensor, *, name: str = "images") -> None:
    """Refuse images that hold NaN or infinity.

    Raises:
        CircuitError: as it says.
    """
    if not bool(torch.isfinite(images).all()):
        raise CircuitError(f"the {name} hold NaN or infinity. Look at how they were normalised.")
