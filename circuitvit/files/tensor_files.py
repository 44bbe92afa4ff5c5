"""Reads and writes safetensors; nothing else does. Recognises other files of weights.

A file's metadata holds a digest of its tensors and of the rest of the metadata, which is checked
on reading. It is XXH3, which finds damage and costs a tenth of the time of writing; it does not
protect from those who alter a file on purpose, since they can make a new digest.
"""

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitvit.files import replacing
from circuitvit.files.reading import parsed
from circuitvit.files.troubles import bad_path
from circuitvit.plain_weights import to_own_memory

DIGEST = "circuitvit.digest"
THREADS = 2
"""That copy and hash tensors at once; more gain nothing, since memory is the limit."""

Item = TypeVar("Item")
Converted = TypeVar("Converted")
Form = Literal["safetensors", "torch", "other", "unknown"]

_ARCHIVE = "{} archive: unpack it first, and give the file inside"
_FIRST_BYTES = {
    b"version https://git-lfs": (
        "a git-lfs pointer, not the file it stands for: run 'git lfs pull' in its folder, or "
        "download the file again"
    ),
    b"\x1f\x8b": _ARCHIVE.format("a gzip"),
    b"BZh": _ARCHIVE.format("a bzip2"),
    b"\xfd7zXZ\x00": _ARCHIVE.format("an xz"),
    b"7z\xbc\xaf\x27\x1c": _ARCHIVE.format("a 7z"),
    b"Rar!": _ARCHIVE.format("a rar"),
    b"\x28\xb5\x2f\xfd": _ARCHIVE.format("a zstd"),
    b"\x89HDF": "an HDF5 file, as Keras writes them: only weights of PyTorch are read",
    b"\x93NUMPY": "a NumPy array, not a state dict",
    b"GGUF": "a GGUF file: only weights of PyTorch are read",
    b"PAR1": "a parquet file, not weights",
}
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_SHORT_TEXT = 4096
"""A file of text that is no longer may be an answer that a download got in place of its file."""


class AnotherKindError(SafetensorError):
    """A file is no file of weights but of another kind, which the message names."""


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors and texts as a safetensors file, in one step; the same ones, the same bytes.

    Args:
        path: the file.
        tensors: by name, of any layout.
        metadata: texts by name. A digest of everything is added.

    Raises:
        CircuitError: the file can't be written. One that was there is left as it was.
    """
    told = dict(metadata or {})
    with torch.inference_mode(mode=False):
        own = to_own_memory({name: tensor.detach().cpu() for name, tensor in tensors.items()})
        with replacing(path) as beside, ThreadPoolExecutor(1) as beside_writing:
            hashes = beside_writing.map(_hash, own.values())
            save_file(own, beside, metadata=told | {DIGEST: "0" * 32})
            digest = _digest(own, dict(zip(own, hashes, strict=True)), told)
            _finish_header(beside, digest)
    return Path(path)


def read_tensors(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Each tensor gets memory of its own. Those that `safe_open` gives are views of the mapped file:
    they change with it, and they lie at odd addresses, where products of matrices may round
    otherwise. They are made outside of inference mode, so that they can be trained.

    Raises:
        OSError: the file is missing or can't be read.
        SafetensorError: it is cut short, damaged or of another kind, which the error names.
    """
    check_regular(path)
    try:
        with torch.inference_mode(mode=False), safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            written = metadata.pop(DIGEST, None)

            def taken(name: str) -> tuple[str, tuple[Tensor, bytes]]:
                tensor = file.get_tensor(name).clone()
                return name, (tensor, b"" if written is None else _hash(tensor))

            found = dict(_each(file.keys(), taken))
            hashes = {name: hashed for name, (_, hashed) in found.items()}
            tensors = {name: tensor.to(device) for name, (tensor, _) in found.items()}
    except SafetensorError as cause:
        form, what = recognized(path)
        if form == "other":
            raise AnotherKindError(f"it is {what}") from cause
        if form == "torch":
            raise SafetensorError("it is in PyTorch's own format, not safetensors") from cause
        raise
    if written is not None and written != _digest(tensors, hashes, metadata):
        raise SafetensorError("it was damaged or altered after it was saved: its digest differs")
    return tensors, metadata


def told_in(metadata: Mapping[str, str], name: str) -> Any:
    """The JSON value under a name of the metadata; None where there is none.

    Raises:
        ValueError: it is not whole JSON.
    """
    return parsed(metadata[name].encode("utf-8", "surrogatepass")) if name in metadata else None


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no file: a pipe would be waited for.

    Raises:
        OSError: there is no file, or it is something else.
    """
    problem = bad_path(path)
    if problem is not None:
        raise OSError(problem)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{os.fspath(path)} is no file")


def _each(items: Iterable[Item], work: Callable[[Item], Converted]) -> list[Converted]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(work, items))


def _hash(tensor: Tensor) -> bytes:
    return xxhash.xxh3_128_digest(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _digest(
    tensors: Mapping[str, Tensor], hashes: Mapping[str, bytes], metadata: Mapping[str, str]
) -> str:
    """32 hexadecimal digits that name the tensors, with names and shapes, and the metadata."""
    parts = [
        [name, str(tensors[name].dtype), list(tensors[name].shape), hashes[name].hex()]
        for name in sorted(tensors)
    ]
    text = json.dumps([parts, sorted(metadata.items())])
    return xxhash.xxh3_128_hexdigest(text.encode())


def _finish_header(path: Path, digest: str) -> None:
    """Set the digest, and order the metadata, which safetensors writes in an order by chance."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted((header["__metadata__"] | {DIGEST: digest}).items()))
        after = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(after) <= size, "safetensors writes its header more briefly than json"
        file.seek(8)
        file.write(after.ljust(size))


def recognized(path: str | os.PathLike[str]) -> tuple[Form, str]:
    """The format of a file by its first bytes, and in words if it holds no weights.

    Raises:
        OSError: it can't be read.
    """
    source = Path(path)
    size = source.stat().st_size
    with source.open("rb") as file:
        start = file.read(512)
    if not start:
        return "other", "empty: the download or the save was cut off; get it again"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return "safetensors", ""
    if start.startswith(b"PK\x03\x04"):
        return _zipped(source)
    if start.startswith(b"\x80"):
        return "torch", ""
    told = next((text for mark, text in _FIRST_BYTES.items() if start.startswith(mark)), None)
    if told is None and start[257:262] == b"ustar":
        told = _ARCHIVE.format("a tar")
    told = told or _text(start, size)
    return ("unknown", "") if told is None else ("other", told)


def _zipped(path: Path) -> tuple[Form, str]:
    """The content of a zip archive; PyTorch's own files are zip archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "other", "cut short: the end of the file is missing; get it again"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last or any("/code/" in name for name in names):
        return "other", (
            "a TorchScript model, which holds code. Save the state_dict of the module that it was "
            "made of"
        )
    if last & {"archive_format", "serialized_exported_program.json"}:
        return "other", (
            "a program that torch.export wrote. Save the state_dict of the module that it was made "
            "of"
        )
    if "data.pkl" in last:
        return "torch", ""
    if names and all(name.endswith(".npy") for name in names):
        return "other", "an .npz file of NumPy arrays: only weights of PyTorch are read"
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return "other", f"{_ARCHIVE.format('a zip')} ({shown})"


def _text(start: bytes, size: int) -> str | None:
    """The kind of a text file; None for other bytes."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.lower().startswith(_HTML):
        return (
            "an HTML or XML page, not weights: the download got a web page or an error, such as "
            "one that asks to log in. Download the file itself again"
        )
    if begin.startswith((b"{", b"[")):
        index = "weight_map" in begin.decode(errors="replace") or b'"total_size"' in begin
        return "the index of a model in several files: give its folder" if index else "a JSON file"
    line = begin.decode("ascii", errors="ignore").splitlines()[:1]
    plain = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
    if plain and size <= _SHORT_TEXT and line and " " in line[0].strip():
        return f"a text that begins {line[0][:60]!r}, not weights. Download the file again"
    return None
