"""Arrays from `.npz` files: what the file claims is counted before room is made for any of it."""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from circuitvit.errors import CircuitError, reason_of
from circuitvit.memory import memory_left

_MOST_ARRAYS = 1000
_MOST_DIRECTORY = 2**20
_SMALL = 64 * 2**20
_MOST_FOLD = 200
"""How many times their size in the file arrays of more than `_SMALL` bytes may be: photographs
shrink to a half or a third, and zip shrinks nothing to less than a thousandth."""

_MAGIC = b"\x93NUMPY"
_END = b"PK\x05\x06"
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy writes; others take room unasked
_BROKEN = (
    OSError, ValueError, EOFError, MemoryError, ArithmeticError, RecursionError, RuntimeError,
    SyntaxError, TypeError, LookupError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name; what else lies in it is left out.

    Raises:
        CircuitError: the file can't be read, an array is of Python objects or claims more than the
            file holds, or all of them need more memory than is free.
    """
    try:
        with path.open("rb") as opened:
            _check_directory(opened)
            with zipfile.ZipFile(opened) as archive:
                members = _checked(archive)
                return {name: _read(archive, member) for name, member in members.items()}
    except _BROKEN as cause:
        raise CircuitError(
            f"{path} can't be read: {reason_of(cause)}. Write it with numpy.savez, without Python "
            "objects."
        ) from cause


def _check_directory(opened: io.BufferedIOBase) -> None:
    """Refuse a list of members that would itself fill the memory."""
    opened.seek(0, 2)
    opened.seek(max(0, opened.tell() - 2**16 - 22))
    tail = opened.read()
    at = tail.rfind(_END)
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if size > _MOST_DIRECTORY:
        raise ValueError(f"its list of arrays claims {_told(size)}")
    opened.seek(0)


def _checked(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays in an archive, none of which claims too much."""
    infos = archive.infolist()
    if len(infos) > _MOST_ARRAYS:
        raise ValueError(f"it holds {len(infos)} arrays, expected at most {_MOST_ARRAYS}")
    if odd := next((info for info in infos if info.compress_type not in _PACKED), None):
        raise ValueError(f"{odd.filename!r} is packed in a way that numpy.savez doesn't use")
    swollen = [info for info in infos if info.file_size > _MOST_FOLD * info.compress_size]
    if (size := sum(info.file_size for info in swollen)) > _SMALL:
        raise ValueError(
            f"{swollen[0].filename!r} claims more than {_MOST_FOLD} times what it takes in the "
            f"file, {_told(size)}"
        )
    total, free = sum(info.file_size for info in infos), memory_left()
    if total > free:
        raise ValueError(f"it claims {_told(total)} of arrays, and {_told(free)} are free")
    found = {}
    for info in infos:
        with archive.open(info) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                continue
        with archive.open(info) as file:
            _check_claim(info, file)
        found[info.filename.removesuffix(".npy")] = info
    return found


def _check_claim(info: zipfile.ZipInfo, file: Any) -> None:
    """Refuse an array whose header promises another size than its member has."""
    version = np.lib.format.read_magic(file)
    header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(
            f"{info.filename!r} is of the .npy version {version}, as no plain array is"
        )
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename!r} is an array of Python objects")
    claimed, held = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if claimed != held or any(side < 0 for side in shape):
        raise ValueError(
            f"{info.filename!r} says that it is {dtype} of shape {shape}, {_told(claimed)}, but "
            f"holds {_told(held)}"
        )


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at the end of a member zipfile checks its sum
    return array


def _told(size: int) -> str:
    return f"{size / 2**30:z,.1f} GiB" if abs(size) >= 2**29 else f"{size:,} bytes"
