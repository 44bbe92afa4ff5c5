"""Shared by exports to timm and transformers: obstacles, and the comparison of logits."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.models.saved_model import has_hooks, without_hooks
from circuitvit.models.vit import ViT
from circuitvit.pretrained.conversion import compare

CLOSE = 1e-6
"""Largest difference of logits in single precision, in units of the largest."""


def exportable_vit(vit: object) -> ViT:
    """Refuse anything but a `ViT`; one with forward hooks is copied without them.

    Raises:
        CircuitError: it is something else.
    """
    if not isinstance(vit, ViT):
        raise CircuitError(
            f"can't go back to another library from a {type(vit).__name__}, expected a "
            "circuitvit.ViT: a circuit compiled with level='edge' has no such form."
        )
    vit.check_weights()
    return without_hooks(copy.deepcopy(vit)) if any(map(has_hooks, vit.modules())) else vit


def refuse_export(problems: list[str], library: str) -> None:
    """Raise if there are reasons against it.

    Raises:
        CircuitError: there are; every one is named.
    """
    if problems:
        raise CircuitError(f"{library} has no model of this shape: " + "; ".join(problems) + ".")


def shape_problems(config: ViTConfig, *, square_heads: bool) -> Iterator[str]:
    """Why blocks can't be those of a library whose blocks are all alike."""
    yield from _ragged(config)
    for name in ("attention_constant", "mlp_constant"):
        where = [block for block, there in enumerate(getattr(config, name)) if there]
        if where:
            yield f"blocks {where} add a constant [token width] ({name})"
    alike = len(set(config.heads)) == 1 and len(set(config.head_width)) == 1
    inner = config.heads[0] * config.head_width[0] if alike else config.width
    if square_heads and inner and inner != config.width:
        yield (
            f"{config.heads[0]} heads of width {config.head_width[0]} make {inner}, not the width "
            f"{config.width}"
        )
    if not config.depth:
        yield "it has no blocks"


def _ragged(config: ViTConfig) -> Iterator[str]:
    for name in ("heads", "head_width", "mlp_width"):
        values = getattr(config, name)
        if name == "head_width":  # that of an attention which is gone means nothing
            values = tuple(w for w, h in zip(values, config.heads, strict=True) if h)
        if len(set(values)) > 1:
            yield f"{name} differs by block: {getattr(config, name)}"
        elif values and values[0] == 0:
            yield f"no block has {'attention' if name == 'heads' else 'an MLP'} ({name} is 0)"


def with_zero_biases(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Copies of the weights, with zeros for an output bias that a block lacks."""
    copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
    for block in range(config.depth):
        zeros = copies["positions"].new_zeros(config.width)
        copies.setdefault(f"blocks.{block}.output_bias", zeros)
    return copies


def split_heads(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The two heads whose average is a head on two tokens; both get its bias."""
    first, second = weights["head.weight"].chunk(2, dim=1)
    return 2 * first.contiguous(), 2 * second.contiguous()


def check_same(
    vit: ViT, module: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor], *, source: str
) -> None:
    """Compare before returning; where single precision rounds too much to tell, in double.

    Raises:
        CircuitError: the logits differ.
    """
    ours = copy.deepcopy(vit).eval()
    difference = compare(ours, lambda images: logits(module, images), source=source)
    if ours.positions.dtype == torch.float32 and difference > CLOSE:
        exact: Any = copy.deepcopy(module).double()
        compare(ours.double(), lambda images: logits(exact, images), source=source)
