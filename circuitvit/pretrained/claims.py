"""What a model's folder says of itself, checked before a library believes it.

No code of a folder is run, no file outside of it is read, and nothing is made that its weights are
too few for.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuitvit.config import MOST_BLOCKS
from circuitvit.errors import CircuitError, in_short, printable, reason_of
from circuitvit.files import read_json

_LABELS = ("id2label", "label2id", "label_names", "label_descriptions", "labels")
"""Fields whose values name classes."""
_MOST_LABELS = 2**18
_MOST_NUMBER = 2**31
_MOST_SHARDS = 10_000
_DEEPEST = 16
_SPARE = 2**24
"""So many parameters may be missing from the weights: the names of all that are get said then."""
_TEXTS = ("model_type", "architecture", "_name_or_path")


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that no library should read.

    Raises:
        CircuitError: a field has the wrong type or an absurd number, or asks for foreign code.
    """
    problems = [f"{name} is {in_short(config[name], most=60)}, expected a text" for name in _TEXTS
                if not isinstance(config.get(name) or "", str)]  # fmt: skip
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        problems.append(f"architectures is {in_short(named, most=60)}, expected a list of names")
    architecture = str(config.get("architecture") or "")
    if any(mark in architecture for mark in ":/\\"):
        problems.append(
            f"architecture is {in_short(architecture, most=60)}, which is a place and no name; "
            "circuitvit reads nothing outside of the folder"
        )
    problems = problems or [*_absurd(config, "", 0)]
    if problems:
        shown = "; ".join(problems[:5])
        raise CircuitError(
            f"{folder / 'config.json'} is not the config of a model that can be read: {shown}. "
            "Take the folder from its source again."
        )


def _absurd(values: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
    """Fields with numbers that no model has, or that name a kernel to be fetched and run."""
    for name, value in values.items():
        place = printable(f"{where}{name}")
        if name in _LABELS:
            if isinstance(value, dict | list) and len(value) > _MOST_LABELS:
                yield f"{place} has {len(value):,} entries, expected at most {_MOST_LABELS:,}"
        elif isinstance(value, Mapping):
            if depth >= _DEEPEST:
                yield f"{place} is nested too deeply"
            else:
                yield from _absurd(value, f"{where}{name}.", depth + 1)
        elif name.endswith("_implementation") and "/" in str(value):
            yield (
                f"{place} is {in_short(value, most=60)}, a kernel from the hub; circuitvit runs no "
                "code that a model's folder names"
            )
        else:
            yield from _absurd_numbers(name, place, value)


def _absurd_numbers(name: str, place: str, value: Any) -> Iterator[str]:
    most = _MOST_NUMBER
    if "layers" in name or "depth" in name:
        most = MOST_BLOCKS
    elif name in ("num_labels", "num_classes"):
        most = _MOST_LABELS
    numbers: Iterable[Any] = value if isinstance(value, list) else (value,)
    if isinstance(value, list) and len(value) > _MOST_LABELS:
        yield f"{place} has {len(value):,} entries, expected at most {_MOST_LABELS:,}"
    elif any(isinstance(n, int) and abs(n) > most for n in numbers):
        yield f"{place} is {in_short(value, most=60)}, expected at most {most:,}"
    elif any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        yield f"{place} is {in_short(value, most=60)}, expected finite numbers"


def asks_for_code(config: Mapping[str, Any]) -> str:
    """A sentence about the code that a config asks for; empty if it asks for none."""
    if not config.get("auto_map"):
        return ""
    return (
        f" The folder asks for Python code of its own ({in_short(config['auto_map'], most=120)}), "
        "and circuitvit runs no code from a model's folder. Load the model where you trust that "
        "code, and give the module."
    )


def check_shards(folder: Path) -> None:
    """Refuse an index of weights in several files that leads out of the folder.

    Raises:
        CircuitError: it is no index, or names something else than files of the folder.
    """
    for path in sorted(folder.glob("*.index.json")):
        index = read_json(path, what="index of weights")
        shards = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(shards, Mapping) or not all(map(_is_text, shards.values())):
            raise CircuitError(
                f"{path} is not an index of weights: weight_map is "
                f"{in_short(shards, most=60)}, expected a file's name for each tensor. Take the "
                "folder from its source again."
            )
        names = {str(name) for name in shards.values()}
        if len(names) > _MOST_SHARDS:
            raise CircuitError(
                f"{path} names {len(names):,} files, expected at most {_MOST_SHARDS:,}."
            )
        outside = sorted(name for name in names if not _is_inside(folder, name))
        if outside:
            raise CircuitError(
                f"{path} names {in_short(outside[0], most=100)}, which is no file inside of "
                f"{folder}: nothing outside of a model's folder is read. Put the file there."
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is a file's in a folder; the hub's cache has links into its own repository."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0") or len(name) > 255:
        return False
    home = folder.resolve()
    homes = [home, *([home.parents[1]] if home.parent.name == "snapshots" else [])]
    try:
        place = (home / name).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle
        return False
    return any(place.is_relative_to(one) for one in homes)


def check_size(config: Path, make: Callable[[], nn.Module], files: Iterable[Path]) -> None:
    """Refuse a config of a model that is far larger than the weights beside it.

    Args:
        config: the file.
        make: what makes the model.
        files: of weights; a parameter takes a byte or more.

    Raises:
        CircuitError: it is far larger, or can't be made.
    """
    try:
        with torch.device("meta"):  # needs no memory
            module = make()
        count = sum(parameter.numel() for parameter in module.parameters())
    except Exception as cause:  # a library raises what it likes
        raise CircuitError(f"no model can be made of {config}: {reason_of(cause)}.") from cause
    held = sum(file.stat().st_size for file in files)
    if count > held + _SPARE:
        raise CircuitError(
            f"{config} is of a model with {count:,} parameters, but its weights take {held:,} "
            "bytes, which is too few for it. One of the files is of another model or cut short; "
            "take the folder from its source again."
        )
