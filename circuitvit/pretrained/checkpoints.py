"""Checkpoints: which of a file's tensors are the model's weights, under which names.

`choosing` takes off what training scripts put around them, `classifiers` finds the head, and
`fitting` puts what is found here into a module.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import adapters_among, few, quantized_among
from circuitvit.pretrained.checkpoint_head import straight_heads, with_outer_head
from circuitvit.pretrained.checkpoint_weights import Choosing
from circuitvit.pretrained.safe_loading import content_of

Choice = Literal["ema", "model"]
CHOICES: tuple[str, ...] = ("ema", "model")
_DEEPEST = 6
"""Dictionaries in dictionaries, in which tensors are looked for."""

ADAPTER = "circuitvit.adapter"
"""The key in a safetensors file's metadata by which `Adapter.load` knows its own."""
NO_MODEL = (
    "is an adapter, which is no model without its backbone. Load it with Adapter.load(path)"
    ".apply(backbone)."
)


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint, under the names of their library.

    Attributes:
        path: the file.
        tensors: by name, without prefixes.
        metadata: of a safetensors file.
        notes: what was unwrapped.
        guessed: sentences about what was chosen without being asked.
        beside: keys outside of the model.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, weights: str | None = None) -> Weights:
    """The weights in a file.

    Args:
        path: the file.
        weights: "ema" for an average of weights, "model" for the weights themselves, where the
            file has both; by default the one that timm takes, which is said.

    Raises:
        CircuitError: it is missing, broken, of another kind, or has no such choice.
    """
    source = Path(path)
    content, metadata = content_of(source)
    if ADAPTER in metadata:
        raise CircuitError(f"{source} {NO_MODEL}")
    choice = Choosing(source, weights)
    tensors, notes = _tensors(source, content, choice.unwrapped(content))
    tensors = choice.without_wrappers(tensors)
    tensors, beside = choice.without_prefix(tensors)
    choice.check_taken()
    for problem in (adapters_among(tensors), quantized_among(tensors)):
        if problem is not None:
            raise CircuitError(f"in {source}, {problem}")
    tensors, masked = _unmasked(source, tensors)
    tensors, head = with_outer_head(source, tensors, beside)
    renames = straight_heads(tensors)
    moved = [name for name, new in renames.items() if new != name]
    tensors, converted = _in_one_dtype({renames[name]: tensor for name, tensor in tensors.items()})
    notes += [*choice.notes, *masked, *head.notes]
    if moved:
        notes.append(f"{', '.join(moved)} read as the head's only layer")
    return Weights(
        source,
        tensors,
        metadata,
        (*notes, *converted),
        (*choice.guessed, *head.guessed),
        tuple(sorted(set(beside) - set(head.taken))),
    )


def _tensors(path: Path, whole: Any, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors among what was unwrapped, and what was done to have them.

    Raises:
        CircuitError: there are none by name; it says where in the file others are.
    """
    tensors, arrays = {}, 0
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value, arrays = torch.from_numpy(np.array(value)), arrays + 1
        if isinstance(value, Tensor):
            tensors[str(name)] = value
    if tensors:
        return tensors, [f"{arrays} NumPy arrays read as tensors"] if arrays else []
    save = "Write weights with save_file(model.state_dict(), 'weights.safetensors') of " \
        "safetensors.torch."  # fmt: skip
    keys = f" with the keys {few([*map(repr, whole)])}" if isinstance(whole, Mapping) else ""
    kind = f"a {type(whole).__name__}{keys}" if whole else f"an empty {type(whole).__name__}"
    places = dict(_places(whole, "content", 0))
    if not places:
        raise CircuitError(f"{path} holds no tensors by name, but {kind}. {save}")
    shown = few([f"{place} ({count})" for place, count in places.items()])
    most = max(places, key=lambda place: places[place])
    raise CircuitError(
        f"{path} holds {kind}; tensors are in {shown}, and it can't be told which are a model's. "
        "A model's are a dict of tensors by the names that state_dict() gives. Save them alone, "
        f"such as save_file({most}, 'weights.safetensors') if those are they, where content is "
        f"what the file holds. {save}"
    )


def _places(content: Any, place: str, depth: int) -> Iterator[tuple[str, int]]:
    """Where in nested dictionaries and lists tensors are, and how many."""
    if isinstance(content, Mapping):
        items = [(f"{place}[{key!r}]", value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        items = [(f"{place}[{index}]", value) for index, value in enumerate(content)]
    else:
        return
    count = sum(isinstance(value, Tensor | np.ndarray) for _, value in items)
    if count:
        yield place, count
    for inner, value in items if depth < _DEEPEST else ():
        yield from _places(value, inner, depth + 1)


def _in_one_dtype(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Floating-point weights in the widest of their dtypes."""
    kinds = {t.dtype for t in tensors.values() if t.is_floating_point() and t.itemsize > 1}
    if len(kinds) < 2:
        return tensors, []
    widest = reduce(torch.promote_types, kinds)
    shown = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    result = {n: t.to(widest) if t.dtype in kinds else t for n, t in tensors.items()}
    return result, [f"weights in {shown} are all read in {str(widest).removeprefix('torch.')}"]


def _computed(names: Collection[str]) -> dict[str, list[str]]:
    """Keys of weights that are made of others, by the call that makes them plain.

    A loss may have a `log_g` of its own: what tells is the tensor that goes with it.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        base, _, ending = name.rpartition("_")
        if ".parametrizations." in f".{name}":
            call = "torch.nn.utils.parametrize.remove_parametrizations(layer, name)"
        elif ending == "u" and f"{base}_orig" in names:
            call = "torch.nn.utils.remove_spectral_norm(layer)"
        elif ending == "g" and f"{base}_v" in names:
            call = "torch.nn.utils.remove_weight_norm(layer)"
        elif ending == "orig" and base not in names and f"{base}_u" not in names:
            call = "torch.nn.utils.prune.remove(layer, name)"
        else:
            continue
        found.setdefault(call, []).append(name)
    return found


def _unmasked(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights with the masks of `torch.nn.utils.prune` applied.

    Raises:
        CircuitError: weights are made of others in another way.
    """
    masked = [n[:-5] for n in tensors if n.endswith("_orig") and f"{n[:-5]}_mask" in tensors]
    result = dict(tensors)
    for name in masked:
        result[name] = result.pop(f"{name}_orig") * result.pop(f"{name}_mask")
    for call, found in _computed(result.keys()).items():
        raise CircuitError(
            f"{path} holds weights that are made of others ({few(found)}). Make them plain before "
            f"saving: {call} for each."
        )
    return result, [f"masks of torch.nn.utils.prune applied: {few(masked)}"] if masked else []
