"""Files of weights: read, unwrapped, and fitted into a module of their library."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.pretrained import huggingface, torchvision
from circuitvit.pretrained.libraries import first_line
from circuitvit.pretrained.reading import Renames, renamed
from circuitvit.pretrained.sources import Opened

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema", "net",
    "network", "module",
)  # fmt: skip
"""Under these names training scripts keep the weights, in the order in which they are tried."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and training frameworks put before every key."""
ADAPTER = "circuitvit.adapter"
"""The key in a safetensors file's metadata by which `Adapter.load` knows its own."""
NO_MODEL = (
    "is an adapter, which is no model without its backbone. Load it with Adapter.load(path)"
    ".apply(backbone)."
)
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def read_checkpoint(
    path: Path,
) -> tuple[dict[str, Tensor], Mapping[str, str], tuple[str, ...]]:
    """The tensors of a file by name, its metadata, and what was unwrapped.

    Raises:
        CircuitError: it is missing, broken, of another kind, or holds more than tensors.
    """
    if not path.is_file():
        raise CircuitError(f"no checkpoint at {path}: there is no such file.")
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        if ADAPTER in metadata:
            raise CircuitError(f"{path} {NO_MODEL}")
        unwrapped, notes = _without_prefixes(tensors)
        return unwrapped, metadata, notes
    if path.suffix not in ENDINGS:
        raise CircuitError(f"{path} ends in {path.suffix!r}, expected one of {ENDINGS}.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch.load raises what it likes
        raise CircuitError(
            f"{path} can't be read as weights ({first_line(cause)}). Only "
            "files of tensors are read, never ones that could run code: write one with "
            "save_file(model.state_dict(), 'weights.safetensors') of safetensors.torch."
        ) from cause
    tensors, notes = _unwrapped(path, content)
    stripped, more = _without_prefixes(tensors)
    return stripped, {}, (*notes, *more)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as cause:
        raise CircuitError(f"{path} is cut short or no safetensors file ({cause}).") from cause


def _unwrapped(path: Path, content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        others = f" ({', '.join(map(repr, inner[1:]))} left there)" if len(inner) > 1 else ""
        notes = (*notes, f"weights taken from {inner[0]!r} of {path.name}{others}")
        content = content[inner[0]]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(n): t for n, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CircuitError(
            f"{path} holds no tensors by name, but a {type(content).__name__}. Write weights "
            "with save_file(model.state_dict(), 'weights.safetensors') of safetensors.torch."
        )
    return tensors, notes


def _without_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    gone = []
    while tensors:
        found = [p for p in PREFIXES if all(name.startswith(p) for name in tensors)]
        if not found:
            break
        gone.append(found[0])
        tensors = {name.removeprefix(found[0]): tensor for name, tensor in tensors.items()}
    return tensors, (f"prefix {''.join(gone)!r} of every key left out",) if gone else ()


def fitted(found: Opened, path: str | Path) -> Opened:
    """The module with the weights of a file; its own memory, in the file's dtype.

    Raises:
        CircuitError: keys are missing or surplus, or shapes differ: every one is named.
    """
    tensors, _, notes = read_checkpoint(Path(path))
    unused = fit(found.model, tensors, source=str(path))
    name = f"{found.name} with {path}" if found.name else str(path)
    folded = (*found.folded, *notes)
    return replace(found, name=name, folded=folded, unused=(*found.unused, *unused))


def fit(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> tuple[str, ...]:
    """Put tensors into a module, whichever layout of its library they have.

    Returns:
        Keys of the file that take no part in classification.

    Raises:
        CircuitError: keys are missing or surplus, or shapes differ: every one is named.
    """
    renames, unused = _layout_of(module)
    own = module.state_dict()
    left = tuple(sorted(name for name in tensors if name not in own and re.search(unused, name)))
    roles = renamed((name for name in tensors if name not in left), renames)
    given = {role: (name, tensors[name]) for name, role in roles.items()}
    twice = [n for n, role in roles.items() if given[role][0] != n]
    wanted = {role: name for name, role in renamed(own, renames).items()}
    idle = {role for role, name in wanted.items() if re.search(unused, name)}
    problems = [f"{wanted[role]} is missing" for role in sorted(set(wanted) - set(given) - idle)]
    problems += [f"{given[role][0]} is surplus" for role in sorted(set(given) - set(wanted))]
    problems += [
        f"{name} and {given[roles[name]][0]} are two names of one parameter" for name in twice
    ]
    problems += [
        f"{given[r][0]} has shape {tuple(given[r][1].shape)}, expected {tuple(own[name].shape)}"
        for r, name in sorted(wanted.items())
        if r in given and given[r][1].shape != own[name].shape
    ]
    if problems:
        raise CircuitError(
            f"the weights from {source} don't fit this {type(module).__name__}: "
            + "; ".join(problems)
            + "."
        )
    state = {name: given[role][1] if role in given else own[name] for role, name in wanted.items()}
    module.load_state_dict(state, assign=True)
    return left


def _layout_of(module: nn.Module) -> tuple[Renames, str]:
    """What the layouts of a library's files have in common, and the keys that aren't needed.

    timm has one layout: where its names differ (`norm`, `fc_norm`), models compute otherwise.
    """
    if torchvision.knows(module):
        return torchvision.RENAMES, "(?!)"
    if huggingface.knows(module):
        return huggingface.RENAMES, huggingface.UNUSED
    return (), "(?!)"
