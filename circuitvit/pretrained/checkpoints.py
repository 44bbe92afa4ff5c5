"""Checkpoints: which of a file's tensors are the model's weights, under which names.

`choosing` takes off what training scripts put around them, `classifiers` finds the head, and
`fitting` puts what is found here into a module.

Training scripts wrap weights in further dictionaries, of which one may be an average (EMA), and put
prefixes before every name. A name that timm knows, or an average, is taken first, and what else
there is gets reported; between models whose names tell nothing the user chooses. The classifier is
found wherever a script has put its one linear layer.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import adapters_among, few, quantized_among
from circuitvit.pretrained.safe_loading import content_of

_HEADS = {
    "head": "head", "head_dist": "head_dist", "heads": "heads.head", "classifier": "classifier",
    "cls_classifier": "cls_classifier", "distillation_classifier": "distillation_classifier",
}  # fmt: skip
"""Where each library keeps a classifier, and what its one layer is called."""
_BACKBONES = {
    "patch_embed.proj.weight": "head",
    "conv_proj.weight": "heads.head",
    "patch.weight": "head",
}
"""The embedding of patches in each layout, and what its classifier is called there."""
_INSIDE = re.compile(
    r"^(patch_embed|conv_proj|patch|pos_embed|positions|cls_token|dist_token|reg_token|blocks|"
    r"encoder|norm|norm_pre|fc_norm|final_norm|embed_norm|embeddings|layers?|attn_pool|pre_logits)"
    r"(\.|$)"
)
"""Tensors of a backbone, among which there is no classifier."""


class OuterHead(NamedTuple):
    """A classifier that was found outside of the backbone.

    Attributes:
        taken: its keys.
        notes: what was taken.
        guessed: the same as a sentence, where something beside it was left out.
    """

    taken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def straight_heads(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name, with a classifier that is the only layer of a Sequential under its plain name."""
    names = {name: name for name in tensors}
    for root, plain in _HEADS.items():
        inside = {n: t for n, t in tensors.items() if n.startswith(f"{root}.")}
        layers = {name.rpartition(".")[0] for name in inside}
        if len(layers) != 1 or layers <= {root, plain}:
            continue
        kinds = {name.rpartition(".")[2]: t.ndim for name, t in inside.items()}
        if kinds.get("weight") == 2 and set(kinds) <= {"weight", "bias"}:
            names |= {name: f"{plain}.{name.rpartition('.')[2]}" for name in inside}
    return names


def with_outer_head(
    path: Path, tensors: dict[str, Tensor], beside: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], OuterHead]:
    """A backbone's tensors with the one linear layer beside it, of its width, as its head.

    Raises:
        CircuitError: several layers can be the head.
    """
    patches = next((name for name in _BACKBONES if name in tensors), None)
    if patches is None or any(name.partition(".")[0] in _HEADS for name in tensors):
        return tensors, OuterHead()
    head, width = _BACKBONES[patches], len(tensors[patches])
    outside = {n: t for n, t in tensors.items() if not _INSIDE.match(n)} | dict(beside)
    layers = [
        name.removesuffix("weight")
        for name, tensor in outside.items()
        if re.search(r"(^|\.)weight$", name) and tensor.ndim == 2 and tensor.shape[1] == width
    ]
    if len(layers) > 1:
        raise CircuitError(
            f"{path} has several layers that can be the head: "
            f"{few([f'{layer}weight' for layer in layers])}. Rename the one that is meant before "
            f"saving: state[{f'{head}.weight'!r}] = state.pop({f'{layers[0]}weight'!r}), and its "
            "bias likewise, with the backbone's keys without their prefix."
        )
    if not layers or _has_more(layers[0], outside):
        return tensors, OuterHead()
    taken = {n for kind in ("weight", "bias") if (n := f"{layers[0]}{kind}") in outside}
    left = [
        name
        for name, tensor in outside.items()
        if name not in taken and tensor.ndim and tensor.shape[-1] == width  # as a norm between
    ]
    found = {n: t for n, t in tensors.items() if n not in taken}
    found |= {f"{head}.{n.removeprefix(layers[0])}": outside[n] for n in taken}
    note = f"{', '.join(sorted(taken))} beside the backbone taken as its head"
    guess = f"of {path}, {note}, while {few(left)} is left out. Give the whole model if that acts."
    return found, OuterHead(tuple(sorted(taken)), (note,), (guess,) if left else ())


def _has_more(layer: str, outside: Mapping[str, Tensor]) -> bool:
    """Whether a layer is one of several of a head, or has more than a weight and a bias."""
    root = layer.partition(".")[0]
    plain = {f"{layer}weight", f"{layer}bias"}
    return any(n.partition(".")[0] == root and n not in plain for n in outside)


_TIMM = ("state_dict_ema", "model_ema", "state_dict", "model")
"""In the order in which timm's `load_state_dict` tries them: an average first."""
_WRAPPERS = (
    *_TIMM, "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "model_state_dict",
    "net", "network", "module", "params", "weights",
)  # fmt: skip
"""Under these names training scripts keep the weights, in the order in which they are tried."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What is taken off every key where no embedding of patches tells the prefix."""
_INNER = re.compile(r"(^|\.)((?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+)")
"""What compiled layers and those of FSDP put into names, at any place."""
_PATCHES = re.compile(
    r"(?:^|\.)((?:(?:vit|deit|dinov2|dinov2_with_registers|ijepa|vision_model)\.)?"
    r"(?:patch_embed\.proj|conv_proj|embeddings\.patch_embeddings?(?:\.projection)?|patch)"
    r"\.weight)$"
)
"""The embedding of patches in each layout; what stands before it is a prefix."""
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)", re.IGNORECASE)
_DEEPEST_NESTING = 6
"""Dictionaries in dictionaries, in which weights are looked for."""


class Choosing:
    """The chosen set of a file's weights, and sentences about the choice.

    Attributes:
        notes: what was unwrapped.
        guessed: sentences about what was chosen without being asked.
    """

    def __init__(self, path: Path, asked: str | None) -> None:
        self.path, self.asked, self.taken = path, asked, asked is None
        self.notes: list[str] = []
        self.guessed: list[str] = []
        self.met: list[str] = []
        self.inside: list[str] = []
        self.other_prefixes: list[str] = []

    def unwrapped(self, content: Any) -> Any:
        """The content of the dictionaries around the weights."""
        while isinstance(content, Mapping):
            inner = [n for n in content if isinstance(n, str) and _holds_model(content[n])]
            if _holds_patches(content):
                inner.append("")
            inner = inner or [n for n in _WRAPPERS if _holds_tensors(content.get(n))]
            if not inner or inner == [""]:
                break
            name = self._one_of(sorted(inner, key=_in_order))
            if not name:
                break
            self.inside.append(name)
            content = content[name]
        return content

    def _one_of(self, names: Sequence[str]) -> str:
        """The name of the weights to take: the requested one, or the first.

        Raises:
            CircuitError: it can't be told which of several models is meant.
        """
        kinds = {name: "ema" if _is_average(name) else "model" for name in names}
        fits = [name for name in names if self.asked in (None, kinds[name])] or list(names)
        name = fits[0]
        same = [other for other in fits if kinds[other] == kinds[name]]
        if len(same) > 1 and not (name == "" or name in _WRAPPERS):
            raise CircuitError(self._several(names))
        self.taken = self.taken or self.asked == kinds[name]
        self.met += [met for met in names if met]
        others = [other for other in names if other != name]
        left = f" ({', '.join(map(_named, others))} left there)" if others else ""
        average = ", an average," if kinds[name] == "ema" else ""
        if name:
            self.notes.append(f"weights taken from {name!r}{average} of {self.path.name}{left}")
        elif others:
            self.notes.append(f"weights without a prefix taken from {self.path.name}{left}")
        if others and self.asked is None:
            self.guessed.append(self._said(name, kinds))
        return name

    def _several(self, names: Sequence[str]) -> str:
        first, shown = names[0], ", ".join(map(repr, names))
        reading = (
            "its tensors by name"
            if self.path.suffix.lower() == ".safetensors"
            else f"torch.load({self.path.name!r}, map_location='cpu', weights_only=True)"
        )
        at = "".join(f"[{name!r}]" for name in self.inside)
        part = (
            f"{{k.removeprefix({first!r}): t for k, t in content.items() "
            f"if k.startswith({first!r})}}"
            if first.endswith(".")
            else f"content[{first!r}]"
        )
        return (
            f"{self.path} holds several models, under {shown}, and it can't be told which is "
            f"meant. Save that one alone, such as the first: save_file({part}, "
            f"'{first.strip('.')}.safetensors') of safetensors.torch, where content is "
            f"{reading}{at}."
        )

    def _said(self, name: str, kinds: dict[str, str]) -> str:
        others = [other for other in kinds if other != name]
        another = next((kinds[o] for o in others if kinds[o] != kinds[name]), None)
        what = "an average of weights" if kinds[name] == "ema" else "the weights themselves"
        as_timm = ", as timm does" if name in _TIMM or not name else ""
        shown = " and ".join(map(_named, [name, *others]))
        text = f"{self.path} holds {shown}: {_named(name)}, {what}, is taken{as_timm}. "
        if another is None:
            return (
                f"{text}To take another, save it alone in a file; "
                f"weights={kinds[name]!r} takes this one without a warning "
                f"(circuitvit inspect: --weights {kinds[name]})."
            )
        return (
            f"{text}weights={another!r} takes the other, weights={kinds[name]!r} this one without "
            "a warning; on the command line, circuitvit inspect has --weights and --out."
        )

    def without_wrappers(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors without the names of wrappers of single layers in theirs."""
        met = [m[2] for name in tensors for m in _INNER.finditer(name)]
        names = list(dict.fromkeys(part for each in met for part in each.strip(".").split(".")))
        if names:
            self.notes.append(f"{', '.join(map(repr, names))} left out of keys")
        return {_INNER.sub(r"\1", name): tensor for name, tensor in tensors.items()}

    def without_prefix(
        self, tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's tensors without their name prefix, and the other tensors."""
        prefix = self._prefix(list(tensors))
        others = tuple(self.other_prefixes)
        mine = {n: t for n, t in tensors.items() if prefix or not n.startswith(others)}
        if not prefix:
            return mine, {}
        inside = {n.removeprefix(prefix): t for n, t in mine.items() if n.startswith(prefix)}
        beside = {n: t for n, t in mine.items() if not n.startswith((prefix, *others))}
        every = "every key" if len(inside) == len(tensors) else "the model's keys"
        self.notes.append(f"prefix {prefix!r} of {every} left out")
        return inside, beside

    def _prefix(self, names: list[str]) -> str:
        found = [m for name in names if (m := _PATCHES.search(name)) is not None]
        prefixes = sorted({match.string[: match.start(1)] for match in found}, key=_by_length)
        if not prefixes:
            return _shared(names)
        if len(prefixes) == 1:
            only = prefixes[0]
            if _is_average(only):
                self.taken = self.asked != "model"
            return only
        bare = [prefix for prefix in prefixes if not prefix]
        averages = [prefix for prefix in prefixes if _is_average(prefix)]
        each = [*bare, *averages, *(p for p in prefixes if p and p not in averages)]
        taken = self._one_of(each)
        self.other_prefixes = [prefix for prefix in each if prefix not in (taken, "")]
        return taken

    def check_taken(self) -> None:
        """Refuse a choice that the file doesn't have.

        Raises:
            CircuitError: it was asked for.
        """
        if self.taken:
            return
        held = f"only {', '.join(map(repr, self.met))}" if self.met else "one set of weights"
        raise CircuitError(
            f"weights is {self.asked!r}, but {self.path} holds {held}, without a choice between "
            "'ema' and 'model'. Leave weights= out (on the command line --weights)."
        )


def _holds_tensors(content: Any, depth: int = 0) -> bool:
    if not isinstance(content, Mapping) or depth > _DEEPEST_NESTING:
        return False
    return any(isinstance(v, Tensor) or _holds_tensors(v, depth + 1) for v in content.values())


def _holds_patches(content: Mapping[Any, Any]) -> bool:
    """Whether one of the tensors embeds patches, as each ViT has one that does."""
    return any(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray) and _PATCHES.search(name)
        for name, value in content.items()
    )


def _holds_model(content: Any, depth: int = 0) -> bool:
    if not isinstance(content, Mapping) or depth > _DEEPEST_NESTING:
        return False
    return _holds_patches(content) or any(_holds_model(v, depth + 1) for v in content.values())


def _in_order(name: str) -> tuple[int, int]:
    """Where a name stands: what timm takes, weights without a name, averages, known names."""
    if name in _TIMM:
        return 0, _TIMM.index(name)
    if not name:
        return 1, 0
    known = _WRAPPERS.index(name) if name in _WRAPPERS else len(_WRAPPERS)
    return (2 if _is_average(name) else 3), known


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _named(name: str) -> str:
    return repr(name) if name else "weights without a prefix"


def _is_average(name: str) -> bool:
    return _AVERAGE.search(name) is not None


def _shared(names: list[str]) -> str:
    """The prefixes that all keys share, of those that are known."""
    gone = ""
    while names:
        found = [p for p in _PREFIXES if all(name.startswith(gone + p) for name in names)]
        if not found:
            break
        gone += found[0]
    return gone


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
    """The places of tensors in nested dictionaries and lists, with their numbers."""
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
