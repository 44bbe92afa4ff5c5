"""Describes another library's model in our terms; shared by the readers of all libraries."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from circuitvit.config import Activation, Pooling
from circuitvit.errors import CircuitError
from circuitvit.preprocessing import Preprocessing
from circuitvit.torchvision_ops import register_missing_ops

Renames = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class LibraryReading:
    """A library's model in our terms.

    Attributes:
        source: the model's kind, such as `timm VisionTransformer`.
        image_size: side of the square image, in pixels.
        heads: of each block.
        pooling: as in `ViTConfig`, like `fc_norm`, `layer_norm_eps` and `activation`.
        parts: the tensors by role (`patch.weight`, `blocks.0.scale1`, …); see `assembly`.
        logits: the model's own forward pass.
        folded: what was done to the model beyond renaming.
        guessed: sentences about what of its preprocessing is a guess.
        unused: keys of the source that take no part in classification.
    """

    source: str
    image_size: int
    heads: tuple[int, ...]
    pooling: Pooling
    fc_norm: bool
    layer_norm_eps: float
    activation: Activation
    parts: dict[str, Tensor]
    logits: Callable[[Tensor], Tensor]
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@runtime_checkable
class Library(Protocol):
    """The interface of a library's module in this room."""

    RENAMES: Renames

    def problems(self, source: Any) -> list[str]:
        """Everything about the model that a `ViT` has not."""
        ...

    def resize(self, source: Any, image_size: int) -> None:
        """Resample the positions, in place, as the library does."""
        ...

    def read(self, source: Any) -> LibraryReading:
        """The model in our words."""
        ...

    def preprocessing_of(self, source: Any) -> Preprocessing | None:
        """The model's own preprocessing."""
        ...


def renamed(names: Iterable[str], renames: Renames) -> dict[str, str]:
    """Each name by its role: every rename, a pattern and what takes its place, in order."""
    roles = {}
    for name in names:
        role = name
        for pattern, replacement in renames:
            role = re.sub(pattern, replacement, role)
        roles[name] = role
    return roles


def tensors_by_role(
    source: nn.Module, renames: Renames, *, unused: str = "(?!)"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Copies of a module's tensors by role, and the keys matching `unused`, which stay behind.

    A Sequential that does no more than its one linear layer counts as that layer.
    """
    tensors = source.state_dict()
    left = tuple(sorted(name for name in tensors if re.search(unused, name)))
    straight = tuple(
        (rf"^{re.escape(f'{path}.{inner}.')}", f"{path}.")
        for path, module in source.named_modules()
        if path and (inner := path_to_linear(module))
    )
    roles = renamed((name for name in tensors if name not in left), (*straight, *renames))
    return {role: tensors[name].detach().clone() for name, role in roles.items()}, left


_LINEAR = re.compile(r"^blocks\.\d+\.(attention\.(qkv|q|k|v|out)|mlp\.fc[12])\.$")
"""Roles of the linear layers of a block."""
PUT_BACK = (
    "If it is an adapter such as LoRA, merge it into the layer's weights first (with peft, model = "
    "model.merge_and_unload()), or put the plain layer back"
)


def replaced_layers(source: nn.Module, renames: Renames) -> list[str]:
    """Linear layers of blocks in whose place there is something else, with what to do."""
    paths = [path for path, _ in source.named_modules()]
    roles = renamed((f"{path}." for path in paths), renames)
    found = []
    for path, module in source.named_modules():
        inner = path_to_linear(module)
        if not _LINEAR.match(roles[f"{path}."]):
            continue
        layer: Any = module.get_submodule(inner) if inner else module
        added = sorted(set(layer.state_dict()) - {"weight", "bias"})
        if inner is None:
            found.append(f"{path} is a {module_kind(module)}")
        elif added:
            found.append(f"{path} is a {module_kind(layer)} that has {', '.join(added[:3])} too")
    if not found:
        return []
    shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return [f"{shown}, where a plain linear layer is expected. {PUT_BACK}"]


def all_eps(source: nn.Module) -> list[float]:
    """The different ε of a model's LayerNorms."""
    return sorted({m.eps for m in source.modules() if isinstance(m, nn.LayerNorm)})


def eps_problems(source: nn.Module) -> list[str]:
    """The reason why these LayerNorms can't share one ε, if there is one."""
    epsilons = all_eps(source)
    return [f"its LayerNorms have different eps {epsilons}"] if len(epsilons) > 1 else []


def in_blocks(problems: Sequence[Iterable[str]]) -> list[str]:
    """Each problem once, with the blocks that have it; one sequence of problems a block."""
    where: dict[str, list[int]] = {}
    for block, found in enumerate(problems):
        for problem in found:
            where.setdefault(problem, []).append(block)
    every = len(problems) > 1
    return [
        f"every block: {problem}"
        if every and len(blocks) == len(problems)
        else f"block {', '.join(map(str, blocks))}: {problem}"
        for problem, blocks in where.items()
    ]


def activation_of(module: object) -> Activation | None:
    """The MLP's activation by its module; None if it is none of ours."""
    name = type(module).__name__
    if name in ("QuickGELU", "QuickGELUActivation"):
        return "quick_gelu"
    if name in ("GELUTanh", "NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh"):
        return "gelu_tanh"
    if name in ("AccurateGELUActivation",) or getattr(module, "approximate", "") == "tanh":
        return "gelu_tanh"
    return "gelu" if name in ("GELU", "GELUActivation") else None


def is_from(library: str, module: object, *names: str) -> bool:
    """Whether a module's class has one of these names, and is the library's own."""
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] == library


def module_kind(module: object) -> str:
    """A module's class, with its home if that is none of the libraries'."""
    kind = type(module)
    home = kind.__module__.partition(".")[0]
    known = ("timm", "torch", "torchvision", "transformers")
    return kind.__name__ if home in known else f"{kind.__module__}.{kind.__name__}"


def path_to_linear(module: object) -> str | None:
    """The path to a classifier's only layer, past what does nothing in eval mode; None if none."""
    if isinstance(module, nn.Linear):
        return ""
    if not isinstance(module, nn.Sequential):
        return None
    idle = (nn.Identity, nn.Dropout)
    acting = [
        (name, child) for name, child in module.named_children() if not isinstance(child, idle)
    ]
    if len(acting) != 1:
        return None
    inner = path_to_linear(acting[0][1])
    return None if inner is None else f"{acting[0][0]}.{inner}".rstrip(".")


def distinct(names: Iterable[Any]) -> tuple[str, ...]:
    """Class names, with their number where two are the same, such as ImageNet's cranes."""
    names = [str(name) for name in names]
    count = Counter(names)
    taken = {name for name in names if count[name] == 1}
    found = []
    for index, name in enumerate(names):
        label = name
        while count[name] > 1 and (label == name or label in taken):
            label = f"{label} ({index})"
        taken.add(label)
        found.append(label)
    return tuple(found)


def names_by_index(labels: Any) -> tuple[str, ...] | None:
    """Class names of a list, or of a dict from each class's index; None if classes lack one.

    Keys of JSON are texts, in any order; a dict from names to indices tells the same.
    """
    if not isinstance(labels, Mapping):
        return distinct(labels) if isinstance(labels, list | tuple) and labels else None
    for pairs in (labels.items(), ((index, name) for name, index in labels.items())):
        try:
            named = {int(index): str(name) for index, name in pairs}
        except (TypeError, ValueError):
            continue
        if named and sorted(named) == list(range(len(labels))):
            return distinct(named[index] for index in range(len(labels)))
    return None


_EXTRAS = {
    "timm": "pip install 'circuitvit[timm]'",
    "transformers": "pip install transformers",
    "torchvision": "pip install torchvision",
}


def imported(name: str) -> Any:
    """The library, which takes seconds to import.

    Raises:
        CircuitError: it is not installed.
    """
    register_missing_ops()
    try:
        return import_module(name)
    except ImportError as cause:
        raise CircuitError(f"{name} is needed for this and not there ({cause}): {_EXTRAS[name]}") \
            from cause  # fmt: skip


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its progress bars and reports: what is wrong, our own messages say."""
    logging = imported("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def closest(name: str, known: Sequence[str]) -> str:
    """A sentence with the names that look most like one."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f" The closest are {', '.join(near)}." if near else ""
