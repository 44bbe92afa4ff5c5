"""Recognises a module's library, and whether it can be a `ViT`, before weights are loaded."""

from types import ModuleType
from typing import Any, cast

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import layers_in_the_way
from circuitvit.pretrained.libraries import timm, torchvision, transformers
from circuitvit.pretrained.libraries.reading import replaced_layers

LIBRARIES = (timm, transformers, torchvision)
READABLE = (
    "What can be read: timm's VisionTransformer and VisionTransformerDistilled; transformers' "
    + ", ".join(transformers.POOLINGS)
    + "; torchvision's VisionTransformer; a circuitvit.ViT; 'timm:NAME', 'hf:REPOSITORY', "
    "'torchvision:NAME'; a folder of any of them; a checkpoint file."
)


def library_of(module: nn.Module) -> Any:
    """The module here that reads models of its library.

    Raises:
        CircuitError: no one does.
    """
    for library in cast("tuple[ModuleType, ...]", LIBRARIES):
        if library.knows(module):
            return library
    home, reason = type(module).__module__.partition(".")[0], None
    if home in ("timm", "torchvision"):
        reason = {"timm": timm, "torchvision": torchvision}[home].REASONS.get(type(module).__name__)
    if home == "transformers":
        reason = transformers.reason_against(module)
    inside = _model_in(module)
    if inside is not None:
        reason = f"it holds {inside}, and what it does around that would be lost"
    raise CircuitError(
        f"can't make a ViT of {name_of(module)}" + (f": {reason}." if reason else f". {READABLE}")
    )


def _model_in(module: nn.Module) -> str | None:
    """The readable model inside a wrapper, and how to pass it."""
    libraries = cast("tuple[ModuleType, ...]", LIBRARIES)
    for path, inner in module.named_modules():
        if any(library.knows(inner) for library in libraries):
            return f"a {type(inner).__name__} (give it alone: module.{path})"
    return None


def check_layers(module: nn.Module) -> None:
    """Refuse a module with layers that compute otherwise than by their weights.

    Raises:
        CircuitError: it has such (LoRA, quantised), which are named with what to do first.
    """
    problem = layers_in_the_way(module)
    if problem is not None:
        raise CircuitError(f"can't make a ViT of this {type(module).__name__}: {problem}")


def name_of(source: object) -> str:
    """A thing's class, with its home."""
    return f"{type(source).__module__}.{type(source).__name__}"


def check_readable(module: nn.Module) -> None:
    """Refuse an architecture that a `ViT` can't be; it may be on the meta device.

    Raises:
        CircuitError: it has parts that a `ViT` has not; every one is named.
    """
    library = library_of(module)
    refuse_model(module, [*library.problems(module), *replaced_layers(module, library.RENAMES)])


def refuse_model(module: nn.Module, problems: list[str]) -> None:
    """Raise if there are reasons against a model.

    Raises:
        CircuitError: there are; every one is named.
    """
    if problems:
        raise CircuitError(
            f"this {type(module).__name__} can't be represented: " + "; ".join(problems) + "."
        )
