"""A model before its conversion, and the file of weights for it."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import WRAPPERS
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.timm import said_by


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


def unwrapped(module: nn.Module, name: str = "") -> Opened:
    """The model inside torch.compile's, DataParallel's and other wrappers.

    What transformers' wrapper for timm says of images and classes is kept.
    """
    found = Opened(module, name)
    while (place := WRAPPERS.get(type(module).__name__)) is not None:
        if place == "timm_model":
            said = said_by(module)
            found = replace(
                found, preprocessing=said.preprocessing, folded=said.folded, guessed=said.guessed
            )
        module = getattr(module, place)
    return replace(found, model=module)
