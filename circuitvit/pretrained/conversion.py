"""A model of another library as a `ViT`: the same steps whatever the library.

Its tensors by role (`reading`) become a state dict of ours (`assembly`); every tensor must have
been used, and the logits must be those of the source: with its own parameters, and with others
drawn at random, since with some (LayerScale of 1e-5, a head of zeros) logits hardly depend on the
blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.models.vit import ViT
from circuitvit.precision import HALF
from circuitvit.pretrained.assembly import assembled
from circuitvit.pretrained.libraries.reading import Library, Reading, replaced_layers
from circuitvit.pretrained.libraries.recognition import refuse
from circuitvit.torch_modes import default_modes

SHARE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference to the source's logits, by dtype, in units of the largest logit."""
SHARE_IN_HALF = 1e-1
SMALLEST = 0.1
"""Logits below this are compared as if the largest were this."""


@dataclass(frozen=True)
class Examination:
    """A model that was loaded, and what it took; `load_vit` gives its `vit`.

    Attributes:
        source: what was loaded, in a few words.
        vit: the model, in eval mode.
        folded: what was done beyond renaming, such as `LayerScale into W_O, b_O, W2, b2 (12
            blocks)`, and what had to be assumed.
        guessed: sentences about what was assumed without knowing; `load_vit` warns of them.
        unused: keys of the source that take no part in classification.
        difference: largest difference to the source's logits on 2 seeded normal images, ≥ 0, in
            units of its largest logit; None where there is no other library to compare with.
    """

    source: str
    vit: ViT
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    difference: float | None = field(default=None, compare=False)


@torch.no_grad()
def convert(module: nn.Module, library: Library, *, image_size: int | None = None) -> Examination:
    """A `ViT` of a library's module, whose logits were compared with the module's.

    Args:
        module: our own copy, whose parameters are drawn anew here.
        library: the reader of its library.
        image_size: side in pixels to resample positions to.

    Raises:
        CircuitError: the model has parts that a `ViT` has not (every one is named), a tensor was
            not used, or the logits differ.
    """
    source = module.eval()
    problems = library.problems(source)
    problems += [*_weight_problems(source), *replaced_layers(source, library.RENAMES)]
    refuse(source, problems)
    resampled = ()
    if image_size is not None:
        resampled = _resize(source, library, image_size)
    reading = library.read(source)
    vit, folded = _made(reading)
    vit.check_weights()
    difference = compare(vit, reading.logits, source=reading.source)
    vit.preprocessing = library.preprocessing_of(source)
    _redraw(source)
    if image_size is not None:
        library.resize(source, image_size)  # whose positions are others now
    again = library.read(source)
    compare(_made(again)[0], again.logits, source=f"{reading.source}, its parameters redrawn,")
    folded = (*resampled, *reading.folded, *folded)
    return Examination(reading.source, vit, folded, reading.guessed, reading.unused, difference)


def _made(reading: Reading) -> tuple[ViT, tuple[str, ...]]:
    """The model of a reading, and what was folded.

    Raises:
        CircuitError: a tensor was not used.
    """
    config, weights, folded, left = assembled(reading)
    if left:
        raise CircuitError(
            f"this {reading.source} has parameters that no one reads here: {left}. "
            "It is not the plain model of its library; take out what was added."
        )
    return ViT.from_weights(config, weights, source=reading.source).eval(), folded


@torch.no_grad()
def _redraw(source: nn.Module) -> None:
    """Give a module parameters, in place, with which its logits depend on every part.

    In single precision at least, which tells more apart than half.
    """
    dtype = next(source.parameters()).dtype
    source.to(dtype if dtype in SHARE else torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in source.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and "bias" not in name:  # a norm's weight, LayerScale
            values = 1 + 0.3 * values
        elif "weight" in name and parameter.ndim > 1:
            values = values / parameter[0].numel() ** 0.5
        parameter.copy_(values)


def _weight_problems(source: nn.Module) -> list[str]:
    kinds = {parameter.dtype for parameter in source.parameters()}
    dtypes = sorted(map(str, kinds))
    strange = sorted(str(kind) for kind in kinds if kind not in (*SHARE, *HALF))
    several = f"its weights are of several dtypes ({', '.join(dtypes)}); convert it with .float()"
    found = {
        "its weights are on the meta device, so there is nothing to read": any(
            parameter.is_meta for parameter in source.parameters()
        ),
        several: len(dtypes) > 1,
        f"its weights are {', '.join(strange)}, in which nothing is computed; convert it with "
        ".float()": bool(strange),
    }
    return [text for text, is_so in found.items() if is_so]


def _resize(source: nn.Module, library: Library, image_size: int) -> tuple[str, ...]:
    before = library.read(source)
    patch = before.parts["patch.weight"].shape[-1]
    check_image_size(image_size, patch)
    if image_size == before.image_size:
        return ()
    library.resize(source, image_size)
    return (f"positions resampled from {before.image_size} to {image_size} pixels",)


def check_image_size(image_size: Any, patch: int) -> None:
    """Refuse a side that patches don't fill.

    Raises:
        CircuitError: it is no whole number > 0, or no multiple of the patch size.
    """
    is_count = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not is_count or image_size < 1 or image_size % patch:
        below = patch * max(1, (image_size if is_count else patch) // patch)
        raise CircuitError(
            f"image_size is {image_size!r}, expected a multiple of the patch size {patch}, such as "
            f"{below} or {below + patch}."
        )


@torch.no_grad()
def compare(vit: ViT, logits: Callable[[Tensor], Tensor], *, source: str) -> float:
    """The largest difference of two models' logits, in units of the largest.

    Raises:
        CircuitError: it is too large.
    """
    with default_modes(gradients=False):
        return _compared(vit, logits, source)


def _compared(vit: ViT, logits: Callable[[Tensor], Tensor], source: str) -> float:
    config, positions = vit.config, vit.positions
    shape = (2, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = images.to(positions)
    expected, got = logits(images).double(), vit(images).double()
    if expected.shape != got.shape:
        raise CircuitError(
            f"{source} gives an output of shape {tuple(expected.shape)}, expected [image, class] = "
            f"{tuple(got.shape)}. Give a classifier."
        )
    largest = max(float(expected.abs().max()), SMALLEST)
    difference = float((expected - got).abs().max()) / largest
    if not difference <= SHARE.get(positions.dtype, SHARE_IN_HALF):
        raise CircuitError(
            f"the converted model's logits differ from the source's by {difference:z.2g} of the "
            f"largest ({largest:z.2g}): the forward pass of this {source} is not the one of its "
            "library's plain model."
        )
    return difference
