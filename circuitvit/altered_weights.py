"""Weights that a module computes from others at each pass, and what makes plain ones of them.

Pruning masks, parametrizations (weight norm, spectral norm) and low-rank adapters put other tensors
in the place of a weight. Whoever reads or cuts the weights themselves would miss them.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize, prune

SHOWN = 3
_OLD_NORMS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}


def altered_weights(module: nn.Module) -> list[str]:
    """What has to be removed from a module, in a sentence for each kind, with how to do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, part in module.named_modules():
        for what, remedy, weight in _alterations(part):
            place = ".".join(filter(None, (name, weight)))
            found.setdefault((what, remedy), []).append(place)
    return [f"{what} on {some(places)}; {remedy}" for (what, remedy), places in found.items()]


def some(places: list[str]) -> str:
    """The first places of a list, and how many more there are."""
    more = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _alterations(part: nn.Module) -> Iterator[tuple[str, str, str]]:
    """What is on one module: what it is, what to do, and on which weight."""
    if parametrize.is_parametrized(part):
        remedy = (
            "make them plain weights with torch.nn.utils.parametrize.remove_parametrizations("
            'module, "weight")'
        )
        for weight in getattr(part, "parametrizations", ()):
            yield "parametrizations", remedy, str(weight)
    for hook in part._forward_pre_hooks.values():
        kind = type(hook).__name__
        if isinstance(hook, prune.BasePruningMethod):
            remedy = 'make them permanent with torch.nn.utils.prune.remove(module, "weight")'
            yield "pruning masks", remedy, str(getattr(hook, "_tensor_name", "weight"))
        elif kind in _OLD_NORMS:
            remedy = f"fold it in with torch.nn.utils.{_OLD_NORMS[kind]}(module)"
            yield f"a {kind}", remedy, str(getattr(hook, "name", "weight"))
    if any(
        "lora_" in name for name, _ in (*part.named_children(), *part.named_parameters("", False))
    ):
        yield "low-rank adapters (LoRA)", "merge them first, as peft's merge_and_unload() does", ""
