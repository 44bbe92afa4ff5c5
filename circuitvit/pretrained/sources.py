"""What `load_vit` was given, as a module: of another library, or a `ViT` of ours."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.files import readable_path
from circuitvit.plain_weights import WRAPPERS, plain_copy
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.recognition import check_layers


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, and which of them.

    Attributes:
        path: the file.
        weights: "ema" or "model" where it has both; None for timm's choice.
    """

    path: Path
    weights: str | None = None


@dataclass(frozen=True)
class Opened:
    """A model that was found, before it is converted.

    Attributes:
        model: the module.
        name: where it came from; empty for a module that was given.
        preprocessing: what is known of its images beside the module.
        folded: what had to be done or assumed to open it.
        guessed: sentences about what of it may be otherwise.
        unused: keys that were left out.
    """

    model: nn.Module
    name: str = ""
    preprocessing: Preprocessing | None = None
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


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
    from circuitvit.pretrained.bare import from_checkpoint
    from circuitvit.pretrained.folders import from_folder
    from circuitvit.pretrained.names import LIBRARIES, from_name

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


def refuse_choice(weights: str | None, source: object) -> None:
    """Refuse a choice between the weights of a checkpoint where there is no checkpoint.

    Raises:
        CircuitError: a choice was asked for.
    """
    if weights is not None:
        raise CircuitError(
            f"weights is {weights!r}, which chooses in a checkpoint file; {source} has one set of "
            "weights. Leave it out."
        )


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
    from circuitvit.pretrained.fitting import fitted

    check_layers(module)
    found = unwrapped(module)
    copied, folded = plain_copy(found.model)
    found = replace(found, model=copied, folded=(*found.folded, *folded))
    return found if checkpoint is None else fitted(found, checkpoint)


def unwrapped(module: nn.Module, name: str = "") -> Opened:
    """The model inside torch.compile's, DataParallel's and other wrappers.

    What transformers' wrapper for timm says of images and classes is kept.
    """
    from circuitvit.pretrained.timm_wrapper import said_by

    found = Opened(module, name)
    while (place := WRAPPERS.get(type(module).__name__)) is not None:
        if place == "timm_model":
            said = said_by(module)
            found = replace(
                found, preprocessing=said.preprocessing, folded=said.folded, guessed=said.guessed
            )
        module = getattr(module, place)
    return replace(found, model=module)
