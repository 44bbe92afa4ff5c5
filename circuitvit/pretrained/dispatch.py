"""What `load_vit` was given, as a module: of another library, or a `ViT` of ours."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.files import readable_path
from circuitvit.plain_weights import plain_copy
from circuitvit.pretrained.bare_checkpoint import from_checkpoint
from circuitvit.pretrained.fitting import fitted
from circuitvit.pretrained.folders import from_folder
from circuitvit.pretrained.libraries.recognition import check_layers
from circuitvit.pretrained.names import LIBRARIES, from_name
from circuitvit.pretrained.opened import Checkpoint, Opened, refuse_choice, unwrapped


def opened(
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
