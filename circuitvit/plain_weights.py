"""Checks whether a module computes with its parameters as they are, and makes copies that do.

Masks of `torch.nn.utils.prune`, parametrizations, and weight and spectral norms make a weight of
other parameters; such weights can be made permanent. LoRA and quantised layers compute in another
way; they are found by name and have to be undone by the library that made them.
"""

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from circuitvit.errors import CircuitError

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "DeepSpeedEngine": "module",
    "TimmWrapperForImageClassification": "timm_model",
    "TimmWrapperModel": "timm_model",
}
"""Classes around a model, and where they hold it."""

_ADAPTERS = re.compile(
    r"(^|\.)(base_layer|modules_to_save|lora_[a-zA-Z]\w*|hada_\w+|lokr_\w+|ia3_l|b?oft_[a-z]"
    r"|vera_\w+|randlora_\w+|fourierft_\w+|adaption_prompt)(\.|$)"
)
"""What peft, loralib and their like call their parameters."""
_QUANTIZED = re.compile(
    r"(^|\.)(_packed_params|SCB|weight_format|absmax|quant_map|quant_state|qweight|qzeros"
    r"|g_idx|zero_point)(\.|$)"
)
_QUANTIZERS = (
    "bitsandbytes", "torchao", "optimum", "quanto", "hqq", "auto_gptq", "gptqmodel", "awq",
    "compressed_tensors", "eetq", "aqlm",
)  # fmt: skip


class Computed(NamedTuple):
    """A weight that is made of other parameters.

    Attributes:
        name: of the weight in its layer.
        kind: what makes it, in words.
        remedy: the call that makes it permanent.
        remove: that call.
    """

    name: str
    kind: str
    remedy: str
    remove: Callable[[nn.Module, str], Any]


def plain_copy(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in eval mode with computed weights made permanent, and sentences about it.

    Raises:
        CircuitError: it can't be copied.
    """
    kept = {  # what a forward pass left there has a history, which deepcopy refuses
        id(value): value.detach().clone()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    try:
        copied = copy.deepcopy(module, kept).eval()
    except Exception as cause:
        raise CircuitError(
            f"this {type(module).__name__} can't be copied ({' '.join(str(cause).split())[:300]}). "
            "Take off hooks and attributes that were added to it, or build it anew and give its "
            "weights with checkpoint=."
        ) from cause
    _unwrap_layers(copied)
    done: dict[str, list[str]] = {}
    for path, layer in list(copied.named_modules()):
        for found in computed_in(layer):
            found.remove(layer, found.name)
            done.setdefault(found.kind, []).append(f"{path}.{found.name}".lstrip("."))
    return copied, tuple(f"{kind} made permanent: {few(names)}" for kind, names in done.items())


def _unwrap_layers(module: nn.Module) -> None:
    """Put compiled and otherwise wrapped layers back in their wrappers' place."""
    for layer in list(module.modules()):
        for name, child in list(layer.named_children()):
            inner = child
            while (place := WRAPPERS.get(type(inner).__name__)) is not None:
                inner = getattr(inner, place)
            if inner is not child:
                setattr(layer, name, inner)


def computed_in(layer: nn.Module) -> list[Computed]:
    """The layer's own weights that are made of other parameters."""
    found = []
    if parametrize.is_parametrized(layer):
        parametrizations: Any = layer.parametrizations
        found += [
            Computed(
                name,
                f"parametrizations ({', '.join(type(p).__name__.lstrip('_') for p in each)})",
                f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})",
                _without_parametrization,
            )
            for name, each in parametrizations.items()
        ]
    for hook in layer._forward_pre_hooks.values():
        kind = (type(hook).__module__, type(hook).__name__)
        if isinstance(hook, prune.BasePruningMethod):
            name: Any = hook._tensor_name
            remedy = f"torch.nn.utils.prune.remove(layer, {name!r})"
            found.append(Computed(name, "masks of torch.nn.utils.prune", remedy, prune.remove))
        elif kind in _NORMS:
            name = getattr(hook, "name", "weight")
            word, call = _NORMS[kind]
            remedy = f"torch.nn.utils.{call.__name__}(layer, {name!r})"
            found.append(Computed(name, word, remedy, call))
    return found


def _without_parametrization(layer: nn.Module, name: str) -> None:
    """Remove it from this layer alone: a copy shares its class, which torch would change."""
    shared = type(layer)
    own = {key: value for key, value in vars(shared).items() if key not in _OF_CLASSES}
    apart: Any = type(shared.__name__, shared.__bases__, own)
    layer.__class__ = apart
    parametrize.remove_parametrizations(layer, name)


_OF_CLASSES = ("__dict__", "__weakref__")
_NORMS: dict[tuple[str, str], tuple[str, Callable[[nn.Module, str], Any]]] = {
    ("torch.nn.utils.weight_norm", "WeightNorm"): ("weight norm", remove_weight_norm),
    ("torch.nn.utils.spectral_norm", "SpectralNorm"): ("spectral norm", remove_spectral_norm),
}


def computed_weights(module: nn.Module) -> str | None:
    """What makes weights of the module, and how each is made permanent; None if nothing does."""
    where: dict[tuple[str, str], list[str]] = {}
    for path, layer in module.named_modules():
        for found in computed_in(layer):
            name = f"{path}.{found.name}".lstrip(".")
            where.setdefault((found.kind, found.remedy), []).append(name)
    if not where:
        return None
    return "; ".join(
        f"{kind} compute {few(names)} ({remedy} makes it permanent)"
        for (kind, remedy), names in where.items()
    )


def layers_in_the_way(module: nn.Module) -> str | None:
    """Which layers compute otherwise than by a weight, and what to do first; None if none do."""
    names = list(module.state_dict(keep_vars=True))
    quantized: list[str] = []
    for path, layer in module.named_modules():
        inside = quantized and path.startswith(f"{quantized[-1]}.")
        if _is_quantized(layer) and not inside:
            quantized.append(path or type(module).__name__)
    return adapters_among(names) or (None if not quantized else quantized_text(quantized))


def _is_quantized(layer: nn.Module) -> bool:
    home = type(layer).__module__
    own = [*layer.parameters(recurse=False)]
    return (
        home.partition(".")[0] in _QUANTIZERS
        or (home.startswith("torch.") and re.search(r"\.(quantized|qat)\.", home) is not None)
        or any(type(p.data).__module__.partition(".")[0] in _QUANTIZERS for p in own)
        or any(not (p.is_floating_point() or p.is_complex()) for p in own)
    )


def adapters_among(names: Iterable[str]) -> str | None:
    """What to do first about keys of LoRA and its like; None if there are none."""
    matches = [(name, match) for name in names if (match := _ADAPTERS.search(name)) is not None]
    if not matches:
        return None
    layers = list(dict.fromkeys(name[: match.start()] or name for name, match in matches))
    return (
        f"LoRA (or another adapter of peft) is in {few(layers)}. Merge it into the weights first: "
        "with peft, model = model.merge_and_unload(); then give that model, or save it and give "
        "its weights."
    )


def quantized_among(tensors: dict[str, Tensor]) -> str | None:
    """What to do first about quantised weights; None if there are none."""
    names = [
        name
        for name, tensor in tensors.items()
        if _QUANTIZED.search(name)
        or (name.endswith("weight") and tensor.ndim > 1 and not tensor.is_floating_point())
    ]
    return quantized_text(list(dict.fromkeys(_QUANTIZED.sub("", name) for name in names))) \
        if names else None  # fmt: skip


def quantized_text(names: list[str]) -> str:
    """That layers are quantised, and what to do."""
    return (
        f"layers are quantised: {few(names)}. Give the model as it was before, in floating point "
        "(load it without a quantization config, or dequantize it)."
    )


def few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def to_own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, none of them sharing memory with another.

    Tied layers are several names of one tensor, which a safetensors file doesn't have.
    """
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        place = own.untyped_storage().data_ptr()
        if place in taken and own.numel():
            own = own.clone()
        taken.add(place)
        result[name] = own
    return result
