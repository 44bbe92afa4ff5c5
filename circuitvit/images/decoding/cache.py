"""Decoded pixels kept in a folder, so that they are decoded once."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.images.decoding.pixels import Decoded, Look
from circuitvit.images.image_table import Table
from circuitvit.images.tensor_checks import fingerprint

_FORMAT = 1


def remembered(
    folder: str | os.PathLike[str],
    table: Table,
    places: np.ndarray,
    look: Look,
    decode: Callable[[], Decoded],
) -> Decoded:
    """What `decode` gives, from the folder if it is there whole, else made and written there.

    Raises:
        CircuitError: the folder can't be written to.
    """
    path = Path(folder) / f"{_key(table, places, look)}.safetensors"
    found = _read(path)
    if found is None:
        found = decode()
        _write(path, found)
    return found


def _key(table: Table, places: np.ndarray, look: Look) -> str:
    """Of the pictures' contents and order, what is done to them, and what does it."""
    import PIL

    parts = {
        "format": _FORMAT,
        "pillow": PIL.__version__,
        "pictures": table.fingerprint(places),
        # Where a picture stands is part of what is said about it if it can't be read.
        "places": hashlib.sha256(places.astype("<i8").tobytes()).hexdigest(),
        "sizes": list(table.sizes.items()),
        "look": asdict(look),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Decoded | None:
    """The file's pixels; None where there is none, or it is damaged."""
    from safetensors import SafetensorError

    try:
        tensors, said = read_tensors(path)
        skipped = told_in(said, "skipped")
    except (OSError, SafetensorError, ValueError):
        return None
    if not {"pixels", "kept"} <= set(tensors) or not _are_texts(skipped):
        return None
    pixels, kept = tensors["pixels"], tensors["kept"]
    if said.get("fingerprint") != fingerprint(pixels, kept):
        return None
    return Decoded(pixels, kept.numpy(), tuple(skipped))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _write(path: Path, found: Decoded) -> None:
    kept = torch.from_numpy(found.kept)
    said = {
        "fingerprint": fingerprint(found.pixels, kept),
        "skipped": json.dumps(found.skipped),
    }
    write_tensors(path, {"pixels": found.pixels, "kept": kept}, said)
