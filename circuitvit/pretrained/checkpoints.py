"""Checkpoints: which of a file's weights are the model's, under which names.

Training scripts wrap weights in further dictionaries, of which one may be an average (EMA), and put
prefixes before every name. `fitting` puts what is found here into a module.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import adapters_among, few, quantized_among
from circuitvit.pretrained.safe_loading import content_of

Choice = Literal["ema", "model"]
CHOICES: tuple[str, ...] = ("ema", "model")

_TIMM = ("state_dict_ema", "model_ema", "state_dict", "model")
"""In the order in which timm's `load_state_dict` tries them: an average first."""
WRAPPERS = (
    *_TIMM, "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "model_state_dict",
    "net", "network", "module",
)  # fmt: skip
"""Under these names training scripts keep the weights, in the order in which they are tried."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What is taken off every key where no embedding of patches tells the prefix."""
ADAPTER = "circuitvit.adapter"
"""The key in a safetensors file's metadata by which `Adapter.load` knows its own."""
NO_MODEL = (
    "is an adapter, which is no model without its backbone. Load it with Adapter.load(path)"
    ".apply(backbone)."
)
_INNER = re.compile(r"(^|\.)((?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+)")
"""What compiled layers and those of FSDP put into names, at any place."""
_PATCHES = re.compile(
    r"(?:^|\.)((?:(?:vit|deit|dinov2|dinov2_with_registers|ijepa|vision_model)\.)?"
    r"(?:patch_embed\.proj|conv_proj|embeddings\.patch_embeddings?(?:\.projection)?|patch)"
    r"\.weight)$"
)
"""The embedding of patches in each layout; what stands before it is a prefix."""
_HEADS = {
    "head": "head", "head_dist": "head_dist", "heads": "heads.head", "classifier": "classifier",
    "cls_classifier": "cls_classifier", "distillation_classifier": "distillation_classifier",
}  # fmt: skip
"""Where each library keeps a classifier, and what its one layer is called."""


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
    choice = _Choosing(source, weights)
    tensors = _tensors(source, choice.unwrapped(content))
    tensors = choice.without_wrappers(tensors)
    tensors, beside = choice.without_prefix(tensors)
    choice.check_taken()
    for problem in (adapters_among(tensors), quantized_among(tensors)):
        if problem is not None:
            raise CircuitError(f"in {source}, {problem}")
    tensors, masked = _unmasked(source, tensors)
    renames = straight_heads(tensors)
    moved = [name for name, new in renames.items() if new != name]
    notes = [*choice.notes, *masked]
    if moved:
        notes.append(f"{', '.join(moved)} read as the head's only layer")
    tensors = {renames[name]: tensor for name, tensor in tensors.items()}
    return Weights(source, tensors, metadata, tuple(notes), tuple(choice.guessed), beside)


class _Choosing:
    """Which of a file's sets of weights is taken, and what is said of it."""

    def __init__(self, path: Path, asked: str | None) -> None:
        self.path, self.asked, self.taken = path, asked, asked is None
        self.notes: list[str] = []
        self.guessed: list[str] = []
        self.other_prefixes: list[str] = []

    def unwrapped(self, content: Any) -> Any:
        """What is inside the dictionaries that are around the weights."""
        while isinstance(content, Mapping):
            inner = [n for n in WRAPPERS if isinstance(content.get(n), Mapping) and content[n]]
            if not inner:
                break
            name = self.one_of(inner, self.path.name)
            content = content[name]
        return content

    def one_of(self, names: list[str], where: str) -> str:
        """The name of the weights to take; the first but for what was asked."""
        kinds = {name: "ema" if _is_average(name) else "model" for name in names}
        fits = [name for name in names if self.asked in (None, kinds[name])]
        if not fits and not self.taken:
            raise CircuitError(
                f"weights is {self.asked!r}, but {self.path} holds only "
                f"{', '.join(map(repr, names))}. Leave weights= out."
            )
        name = (fits or names)[0]
        both = len(set(kinds.values())) == 2
        self.taken = self.taken or self.asked == kinds[name]
        others = [other for other in names if other != name]
        left = f" ({', '.join(map(repr, others))} left there)" if others else ""
        average = ", an average," if kinds[name] == "ema" else ""
        self.notes.append(f"weights taken from {name!r}{average} of {where}{left}")
        if both and self.asked is None:
            self.guessed.append(self._said(name, kinds))
        return name

    def _said(self, name: str, kinds: dict[str, str]) -> str:
        other = next(other for other, kind in kinds.items() if kind != kinds[name])
        what = "an average of weights" if kinds[name] == "ema" else "the weights themselves"
        as_timm = ", as timm does" if name in _TIMM else ""
        return (
            f"{self.path} holds {name!r} and {other!r}: {name!r}, {what}, is taken{as_timm}. "
            f"weights={kinds[other]!r} takes the other, weights={kinds[name]!r} this one without "
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
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The model's tensors without what stands before their names, and the other keys."""
        prefix = self._prefix(list(tensors))
        if not prefix:
            return tensors, ()
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        others = tuple(self.other_prefixes)
        beside = sorted(n for n in tensors if not n.startswith((prefix, *others)))
        every = "every key" if len(inside) == len(tensors) else "the model's keys"
        self.notes.append(f"prefix {prefix!r} of {every} left out")
        return inside, tuple(beside)

    def _prefix(self, names: list[str]) -> str:
        found = [m for name in names if (m := _PATCHES.search(name)) is not None]
        prefixes = sorted({match.string[: match.start(1)] for match in found}, key=_by_length)
        if not prefixes:
            return _shared(names)
        averages = [prefix for prefix in prefixes if _is_average(prefix)]
        if len(prefixes) == 1 or (prefixes[0] == "" and not (self.asked == "ema" and averages)):
            only = prefixes[0]
            self.taken = self.taken or (self.asked == "ema" and only in averages)
            return only
        if len(prefixes) - len(averages) > 1 or len(averages) > 1:
            raise CircuitError(
                f"{self.path} holds several models, under {', '.join(map(repr, prefixes))}. Save "
                "the one that is meant alone, its keys without the prefix."
            )
        each = [*averages, *(p for p in prefixes if p not in averages)]
        taken = self.one_of(each, self.path.name)
        self.other_prefixes = [prefix for prefix in each if prefix != taken]
        return taken

    def check_taken(self) -> None:
        """Refuse a choice that the file doesn't have."""
        if not self.taken:
            raise CircuitError(
                f"weights is {self.asked!r}, but {self.path} holds one set of weights, without a "
                "choice between 'ema' and 'model'. Leave weights= out."
            )


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _is_average(name: str) -> bool:
    return re.search(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)", name) is not None


def _shared(names: list[str]) -> str:
    """The prefixes that all keys share, of those that are known."""
    gone = ""
    while names:
        found = [p for p in PREFIXES if all(name.startswith(gone + p) for name in names)]
        if not found:
            break
        gone += found[0]
    return gone


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(n): t for n, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CircuitError(
            f"{path} holds no tensors by name, but a {type(content).__name__}. Write weights "
            "with save_file(model.state_dict(), 'weights.safetensors') of safetensors.torch."
        )
    return tensors


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
