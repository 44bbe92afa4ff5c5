"""The content of a file of weights, in whichever format it is; nothing in it can run.

Beside weights, training scripts keep what tells of the run: arguments, numbers of NumPy, paths,
dates. Those are read, as timm reads its own; paths become pure ones.
"""

import argparse
import collections
import datetime
import decimal
import fractions
import re
import types
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.torch_version import TorchVersion

from circuitvit.errors import CircuitError, reason_of
from circuitvit.files.records import recognised
from circuitvit.files.tensor_files import read_tensors, recognized

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_SAFE = (
    "Only files of tensors are read, never ones that could run code: write one, where the model "
    "is, with save_file(model.state_dict(), 'weights.safetensors') of safetensors.torch"
)
_MODELS = re.compile(r"^(torch\.nn\.modules|timm\.models|transformers\.models|torchvision\.models)")
_LAYERS = ("torch.nn.modules.linear.", "torch.nn.modules.conv.", "torch.nn.modules.container.")
"""Classes that files of whole models name: they keep their layers, and not only an activation."""


def content_of(path: Path) -> tuple[Any, Mapping[str, str]]:
    """The content of a file, and the metadata of a safetensors file.

    Raises:
        CircuitError: it is missing, of another kind, broken, or holds more than is read.
    """
    if not path.is_file():
        raise CircuitError(f"no checkpoint at {path}: there is no such file.")
    ending = path.suffix.lower()
    try:
        form, what = recognized(path)
        _check_kind(path, what if form == "other" else "", ending)
        if form == "safetensors" or (form == "unknown" and ending == ".safetensors"):
            return read_tensors(path)
    except (OSError, SafetensorError) as cause:
        raise CircuitError(f"{path} is cut short or no safetensors file ({cause}).") from cause
    return _loaded(path), {}


def _check_kind(path: Path, what: str, ending: str) -> None:
    """Refuse a file by what its first bytes say, if that is no weights, and by its ending."""
    told = recognised(path) if what.endswith("JSON file") else None
    if told is not None:
        raise CircuitError(
            f"{path} is {told}; load_vit reads models: give a model's folder, a file of weights "
            f"({', '.join(ENDINGS)}) or a name such as 'timm:NAME'."
        )
    if ending not in (*ENDINGS, "") and not what.startswith("the index"):
        numpy = " JAX's weights are read by timm.create_model(NAME, checkpoint_path=...): give " \
            "that model." if ending == ".npz" else ""  # fmt: skip
        raise CircuitError(f"{path} ends in {path.suffix!r}, expected one of {ENDINGS}.{numpy}")
    if what:
        raise CircuitError(f"{path} is {what}.")


def _loaded(path: Path) -> Any:
    known = torch.serialization.get_safe_globals()
    harmless: list[Any] = [each for each in _harmless() if each not in known]
    with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
        warnings.simplefilter("ignore")  # about the version of the format
        try:
            with path.open("rb") as file:  # given a path, torch looks at its ending too
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as cause:  # torch.load raises what it likes
            reason = _reason(path, cause)
    raise CircuitError(f"{path} {reason}")  # without torch's text, which advises to trust the file


def _reason(path: Path, cause: Exception) -> str:
    names = _blocked(path, cause)
    classes = [name for name in names if _MODELS.match(name)]
    if any(name.startswith(_LAYERS) for name in classes):
        return f"holds a whole model with its code ({_few(names)}). {_SAFE}."
    if classes:
        return (
            f"holds {_few(names)} beside weights or around them: a class is code, which is not "
            f"read. Leave it out of the file. {_SAFE}."
        )
    if names:
        return f"holds more than weights and plain values: {_few(names)}. {_SAFE}."
    text = str(cause)
    short = "central directory" in text or isinstance(cause, EOFError)
    unread = "weights_only" in text or "WeightsUnpickler" in text
    damaged = "of an unknown or damaged format"
    detail = "cut short" if short else damaged if unread else reason_of(cause)
    return f"can't be read as weights ({detail}). {_SAFE}."


def _blocked(path: Path, cause: Exception) -> list[str]:
    """The classes and functions in a file that are not allowed."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an older format, or one that can't be disassembled
        return sorted(set(re.findall(r"(?:GLOBAL|got <class ')\s?([\w.]+)", str(cause))))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _harmless() -> list[Any]:
    """Types of plain values, with their names in files."""
    plain = [
        argparse.Namespace, types.SimpleNamespace, uuid.UUID, decimal.Decimal, fractions.Fraction,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
        collections.OrderedDict, TorchVersion,
        list, tuple, dict, frozenset, int, float, bool, str, bytes, slice, range,
    ]  # fmt: skip
    named: list[Any] = [(_empty_mapping, "collections.defaultdict")]
    named.append((_empty_list, "collections.deque"))
    for module in ("pathlib", "pathlib._local"):
        named += [
            (PureWindowsPath if "Windows" in name else PurePosixPath, f"{module}.{name}")
            for name in _PATHS
        ]
    return [*plain, *named, *_of_numpy()]


_PATHS = (
    "Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath",
)  # fmt: skip


def _empty_mapping(*_: object) -> dict[Any, Any]:
    return {}


def _empty_list(*_: object) -> list[Any]:
    return []


def _of_numpy() -> list[Any]:
    """Arrays, numbers and their dtypes; functions under their names of versions 1 and 2."""
    made: Any = np.array([1.0]).__reduce__()[0]
    number: Any = np.float64(1).__reduce__()[0]  # pyright: ignore[reportIndexIssue]
    buffer: Any = np.ones(1).__reduce_ex__(5)[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    scalars = {np.dtype(code).type for code in np.typecodes["All"]}
    named = [
        (call, f"numpy.{core}.{place}")
        for core in ("core", "_core")
        for call, place in (
            (made, "multiarray._reconstruct"),
            (number, "multiarray.scalar"),
            (buffer, "numeric._frombuffer"),
        )
    ]
    return [np.ndarray, np.dtype, *kinds, *scalars, *named]
