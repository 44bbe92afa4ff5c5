"""Which of a file's sets of weights is the model's: inside which dictionaries, under which prefix.

Training scripts wrap weights in further dictionaries, of which one may be an average (EMA), and put
prefixes before every name. A name that timm knows, or an average, is taken first, and what else
there is gets said; between models whose names tell nothing the user chooses.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from circuitvit.errors import CircuitError

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
_DEEPEST = 6
"""Dictionaries in dictionaries, in which weights are looked for."""


class Choosing:
    """Which of a file's sets of weights is taken, and what is said of it.

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
        """What is inside the dictionaries that are around the weights."""
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
        """The name of the weights to take; the first but for what was asked.

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
        """The model's tensors without what stands before their names, and the other ones."""
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
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return False
    return any(isinstance(v, Tensor) or _holds_tensors(v, depth + 1) for v in content.values())


def _holds_patches(content: Mapping[Any, Any]) -> bool:
    """Whether one of the tensors embeds patches, as each ViT has one that does."""
    return any(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray) and _PATCHES.search(name)
        for name, value in content.items()
    )


def _holds_model(content: Any, depth: int = 0) -> bool:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
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
