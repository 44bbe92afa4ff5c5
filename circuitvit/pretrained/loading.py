"""Loads a model from a module, a name, a folder or a file, and reports what that took."""

from dataclasses import replace
from pathlib import Path
from typing import no_type_check

import torch
import torch.nn.functional as F
from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.files import readable_path
from circuitvit.models.vit import ViT
from circuitvit.plain_weights import plain_copy
from circuitvit.preprocessing import Preprocessing, fitting, misfits
from circuitvit.pretrained.bare_checkpoint import from_checkpoint
from circuitvit.pretrained.checkpoints import CHOICES
from circuitvit.pretrained.conversion import Examination, check_image_size, convert
from circuitvit.pretrained.fitting import fitted
from circuitvit.pretrained.folders import from_folder
from circuitvit.pretrained.libraries.recognition import READABLE, check_layers, library_of, name_of
from circuitvit.pretrained.names import LIBRARIES, from_name
from circuitvit.pretrained.opened import Checkpoint, Opened, refuse_choice, unwrapped
from circuitvit.torch_modes import in_default_modes


def open_source(
    source: nn.Module | str | Path,
    *,
    checkpoint: str | Path | None,
    heads: int | None,
    weights: str | None = None,
) -> Opened:
    """Find a model by what was given; the module is not the caller's.

    Raises:
        CircuitError: there is none, or it can't be read.
    """
    if source == "":
        raise CircuitError(
            "the source is an empty string. Give a folder ('.' is the current one), a checkpoint "
            "file, or a name such as 'timm:NAME'."
        )
    text = "" if isinstance(source, nn.Module) else str(source)
    path = readable_path(text, "model")
    is_name = isinstance(source, nn.Module) or (":" in text and text.partition(":")[0] in LIBRARIES)
    if heads is not None and (is_name or path.is_dir()):
        raise CircuitError(
            "heads= is for a bare checkpoint file, which doesn't tell them; this source does. "
            "Leave it out."
        )
    file = None
    if checkpoint is not None:
        file = Checkpoint(readable_path(checkpoint, "checkpoint"), weights)
    if isinstance(source, nn.Module):
        found = _of_module(source, file)
    elif ":" in text and text.partition(":")[0] in LIBRARIES:
        refuse_choice(weights if file is None else None, text)
        found = from_name(text, file)
    elif path.is_dir():
        found = from_folder(path, file, weights=weights)
    elif checkpoint is None and path.is_file():
        found = from_checkpoint(Checkpoint(path, weights), heads)
    else:
        raise CircuitError(_nothing_there(text, path, checkpoint))
    return found


def _nothing_there(text: str, path: Path, checkpoint: str | Path | None) -> str:
    if path.is_file():
        return (
            f"{text} is a file of weights, and so is checkpoint={str(checkpoint)!r}. Give one, "
            "or an architecture such as 'timm:NAME' beside checkpoint=."
        )
    hint = f" If you mean a repository on the hub, say 'hf:{text}'." if text.count("/") == 1 else ""
    return (
        f"no model at {text}: there is no such folder or file. Names start with the library: "
        f"'timm:NAME', 'hf:REPOSITORY' or 'torchvision:NAME'.{hint}"
    )


def _of_module(module: nn.Module, checkpoint: Checkpoint | None) -> Opened:
    """A copy of a module that was given, with a file's weights if need be."""
    check_layers(module)
    found = unwrapped(module)
    copied, folded = plain_copy(found.model)
    found = replace(found, model=copied, folded=(*found.folded, *folded))
    return found if checkpoint is None else fitted(found, checkpoint)


@in_default_modes
def examine(
    source: nn.Module | str | Path,
    *,
    image_size: int | None = None,
    checkpoint: str | Path | None = None,
    heads: int | None = None,
    preprocessing: Preprocessing | None = None,
    weights: str | None = None,
) -> Examination:
    """Load a model as `load_vit` does, and report what was folded and what was not used.

    Args:
        source: as in `load_vit`, like the other arguments.
        image_size: side in pixels to resample positions to.
        checkpoint: a file whose weights go into the architecture that `source` names or is.
        heads: attention heads of a bare checkpoint file.
        preprocessing: what to take in place of what the source says.
        weights: "ema" or "model" where a checkpoint file has both.

    Raises:
        CircuitError: the source can't be represented or read; every reason is named.
    """
    _check_kinds(source, checkpoint, preprocessing, weights)
    found = open_source(source, checkpoint=checkpoint, heads=heads, weights=weights)
    return _examined(found, image_size, checkpoint is not None, preprocessing)


def _examined(
    found: Opened, image_size: int | None, refitted: bool, preprocessing: Preprocessing | None
) -> Examination:
    """The opened model as a `ViT`."""
    if isinstance(found.model, ViT):
        result = _of_ours(found.model, image_size)
    else:
        result = convert(found.model, library_of(found.model), image_size=image_size)
    said, notes = found.preprocessing or result.vit.preprocessing, ()
    if refitted:
        said, notes = _without_names(said)
        only_names = result.guessed and said == Preprocessing()  # the rest is a guess
        said = None if only_names else said
    surely = preprocessing is None
    shape = {"channels": result.vit.config.channels, "classes": result.vit.config.classes}
    if problems := misfits(preprocessing, **shape):
        raise CircuitError(f"this preprocessing is not the model's: {'; '.join(problems)}.")
    fits, gone = fitting(said, **shape)
    notes += tuple(gone) if surely else ()
    unnamed = gone if surely and fits else ()  # worth a warning: they were known
    result.vit.preprocessing = preprocessing or fits
    return replace(
        result,
        source=found.name or result.source,
        folded=(*found.folded, *result.folded, *notes),
        guessed=(
            *found.guessed,
            *(result.guessed if said and surely else ()),
            *(f"{result.source}: {note}; give preprocessing=." for note in unnamed),
        ),
        unused=(*found.unused, *result.unused),
    )


@no_type_check  # it checks its own input, with words for people
def _check_kinds(source, checkpoint, preprocessing, weights) -> None:
    if not isinstance(source, nn.Module | str | Path):
        names = ("model", "module", "ema")  # of pipelines, engines, averages
        held = [name for name in names if isinstance(getattr(source, name, None), nn.Module)]
        hint = f"Give the module that it holds, its .{held[0]}." if held else READABLE
        raise CircuitError(f"can't make a ViT of {name_of(source)}. {hint}")
    problems = []
    if weights is not None and weights not in CHOICES:
        problems.append(f"weights is {weights!r}, expected one of {CHOICES}")
    elif weights is not None and checkpoint is None and isinstance(source, nn.Module):
        problems.append(
            f"weights is {weights!r}, which chooses in a checkpoint file; this source is a module. "
            "Leave it out"
        )
    if checkpoint is not None and (not isinstance(checkpoint, str | Path) or checkpoint == ""):
        problems.append(f"checkpoint is {checkpoint!r}, expected the path of a file of weights")
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        problems.append(
            f"preprocessing is a {type(preprocessing).__name__}, expected a cv.Preprocessing"
        )
    if problems:
        raise CircuitError("; ".join(problems) + ".")


def _without_names(seen: Preprocessing | None) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """A checkpoint's classes are its own."""
    if seen is None or seen.class_names is None:
        return seen, ()
    note = "the architecture's class names are forgotten: give preprocessing= with the checkpoint's"
    return replace(seen, class_names=None), (note,)


def _of_ours(vit: ViT, image_size: int | None) -> Examination:
    """A copy of a `ViT`, its positions resampled if requested."""
    vit.check_weights()
    new, folded = vit.eval(), ()
    if image_size is not None:
        check_image_size(image_size, vit.config.patch_size)
        if image_size != vit.config.image_size:
            new = resampled(new, image_size)
            folded = (f"positions resampled from {vit.config.image_size} to {image_size} pixels",)
    return Examination("circuitvit ViT", new.requires_grad_(True), folded)


@torch.no_grad()
def resampled(vit: ViT, image_size: int) -> ViT:
    """A ViT of ours for images of another size, its positions resampled as timm does.

    Raises:
        CircuitError: it has constants [token width], which belong to its own tokens.
    """
    config = vit.config
    if any((*config.attention_constant, *config.mlp_constant)):
        raise CircuitError(
            "this model has constants [token width] of units that were removed, one a token, so "
            f"its images stay {config.image_size} pixels. Resample the model it was made from."
        )
    side, new_side = (size // config.patch_size for size in (config.image_size, image_size))
    weights = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    rows = weights["positions"]
    prefix, grid = rows[: config.prefix_tokens], rows[config.prefix_tokens :].float()
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(new_side**2, -1).to(rows.dtype)
    weights["positions"] = torch.cat([prefix, grid])
    new = ViT.from_weights(replace(config, image_size=image_size), weights, source="resampling")
    new.preprocessing = vit.preprocessing
    return new.eval()
