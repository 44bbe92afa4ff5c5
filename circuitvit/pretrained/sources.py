"""What `load_vit` was given, as a module: of another library, or a `ViT` of ours."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.preprocessing import Preprocessing


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
    source: nn.Module | str | Path, *, checkpoint: str | Path | None, heads: int | None
) -> Opened:
    """Find a model by what was given.

    Raises:
        CircuitError: there is none, or it can't be read.
    """
    from circuitvit.pretrained.bare import from_checkpoint
    from circuitvit.pretrained.checkpoints import fitted
    from circuitvit.pretrained.folders import from_folder
    from circuitvit.pretrained.names import LIBRARIES, from_name

    if source == "":
        raise CircuitError(
            "the source is an empty string. Give a folder ('.' is the current one), a checkpoint "
            "file, or a name such as 'timm:NAME'."
        )
    text = "" if isinstance(source, nn.Module) else str(source)
    path = Path(text).expanduser()
    if heads is not None and (isinstance(source, nn.Module) or not path.is_file()):
        raise CircuitError(
            "heads= is for a bare checkpoint file, which doesn't tell them; this source does. "
            "Leave it out."
        )
    if isinstance(source, nn.Module):
        found = Opened(unwrapped(source))
        if checkpoint is not None:
            found = fitted(Opened(copy.deepcopy(found.model)), checkpoint)
    elif ":" in text and text.partition(":")[0] in LIBRARIES:
        found = from_name(text, checkpoint)
    elif path.is_dir():
        found = from_folder(path, checkpoint)
    elif checkpoint is None and path.is_file():
        found = from_checkpoint(path, heads)
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


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside torch.compile's, DataParallel's and transformers' wrapper for timm."""
    names = {
        "OptimizedModule": "_orig_mod",
        "DataParallel": "module",
        "DistributedDataParallel": "module",
        "TimmWrapperForImageClassification": "timm_model",
    }
    while (name := names.get(type(module).__name__)) is not None:
        module = getattr(module, name)
    return module
