"""What claims or unfolds to more than there is, is refused at once and without taking memory."""

import dataclasses
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from attack.tally import Tally
from attack.workers import Workers

KIND = "bombs"
SECONDS, BYTES = 2.0, 200 * 2**20
pytestmark = pytest.mark.attack


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (118 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def claiming(folder: Path) -> Path:
    """Arrays whose header claims 10¹⁵ bytes."""
    path = folder / "claims.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", _npy("(1000000000, 1000, 1000)") + bytes(100))
        archive.writestr("labels.npy", _npy("(1000000000,)") + bytes(100))
    return path


def unfolding(folder: Path) -> Path:
    """Arrays of 20 GB, in an archive of some MB."""
    path, whole, piece = folder / "unfolds.npz", 20 * 10**9, 10**7
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(_npy("(20000000, 10, 100)")) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = start + again * (whole // piece) + packer.flush()
    size, name = whole + 128, b"images.npy"
    more = struct.pack("<HHQQ", 1, 16, size, len(data))
    fields = struct.pack("<HHHHII", 0, 8, 0, 0, 0, 0xFFFFFFFF)
    local = (
        b"PK\x03\x04"
        + struct.pack("<H", 45)
        + fields[:-4]
        + struct.pack("<IIHH", 2**32 - 1, 2**32 - 1, len(name), 20)
    )
    central = b"PK\x01\x02" + struct.pack("<HH", 45, 45) + fields[:-4] + struct.pack(
        "<IIHHHHHII", 2**32 - 1, 2**32 - 1, len(name), 20, 0, 0, 0, 0, 0
    )  # fmt: skip
    body = local + name + more + data
    directory = central + name + more
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def _picture(folder: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    pieces = [packer.compress(bytes(width + 1)) for _ in range(height)]
    data = b"".join(pieces) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    for name in ("a/good.png", "b/bad.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"):
        Image.new("L", (8, 8), 3).save(folder / name)
    whole = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "b/bad.png").write_bytes(whole)
    return folder


def _model(folder: Path, **fields) -> Path:
    """A model's folder whose config is forged, beside weights that fit it before."""
    from attack import specimens as own

    own.vit().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def _circuit(folder: Path, **fields) -> Path:
    """A circuit whose config is forged, with the checksum that it would have."""
    from attack import specimens as own

    from circuitvit.files.records import checksum

    path = folder / "circuit.json"
    own.circuit().save(path)
    body = json.loads(path.read_text())
    del body["checksum"]
    for key in ("config", "model_config", "shape"):
        if isinstance(body.get(key), dict):
            body[key].update(fields)
    path.write_text(json.dumps({**body, "checksum": checksum(body)}))
    return path


def _linked(folder: Path) -> Path:
    """24 folders, each with links to all others."""
    for one in range(24):
        (folder / f"{one}").mkdir(parents=True)
    for one in range(24):
        for other in range(24):
            (folder / f"{one}" / f"to{other}").symlink_to(f"../{other}")
    return folder


def _file(path: Path, data: bytes, size: int = 0) -> Path:
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    return path


def _config(folder: Path, data: bytes, size: int = 0) -> Path:
    _model(folder)
    _file(folder / "config.json", data, size)
    return folder


def _long() -> bytes:
    return b'{"format": "' + b"a" * 300_000_000 + b'"}'


def _deep() -> bytes:
    return b"[" * 10**6 + b"]" * 10**6


MANY = {
    name: [value] * 10**5
    for name, value in {
        "heads": 2, "head_width": 4, "mlp_width": 6, "attention_constant": False,
        "mlp_constant": False, "output_bias": True,
    }.items()
}  # fmt: skip
BOMBS = {
    "npz that claims 10¹⁵ bytes": ("splits", claiming),
    "npz that unfolds to 20 GB": ("splits", unfolding),
    "PNG of 89M × 1": ("splits", lambda f: _picture(f, 89_000_000, 1)),
    "PNG of 89M × 2": ("splits", lambda f: _picture(f, 89_000_000, 2)),
    "circuit of 10⁸ heads": ("circuit", lambda f: _circuit(f, heads=[10**8] * 2)),
    "circuit of 10⁴ heads": ("circuit", lambda f: _circuit(f, heads=[10**4] * 2)),
    "circuit of width 2⁶³": ("circuit", lambda f: _circuit(f, width=2**63)),
    "circuit of 100,000 blocks": ("circuit", lambda f: _circuit(f, **MANY)),
    "model of 10⁸ heads": ("vit", lambda f: _model(f, heads=[10**8] * 2)),
    "model of 100,000 blocks": ("vit", lambda f: _model(f, **MANY)),
    "model of width 2⁶³": ("vit", lambda f: _model(f, width=2**63)),
    "model of MLPs of 10¹²": ("vit", lambda f: _model(f, mlp_width=[10**12] * 2)),
    "model of images of 10⁹": ("vit", lambda f: _model(f, image_size=4 * 10**9)),
    "model of 10¹² classes": ("vit", lambda f: _model(f, classes=10**12)),
    "folders linked to one another, as images": ("splits", _linked),
    "folders linked to one another, as a model": ("vit", _linked),
    "safetensors header of 10¹² bytes": (
        "vit", lambda f: _file(f / "x.safetensors", struct.pack("<Q", 10**12) + b"{" * 100)
    ),
    "safetensors header of 90 MB": (
        "vit", lambda f: _file(f / "x.safetensors", struct.pack("<Q", 90 * 10**6) + b'{"', 91 * 10**6)
    ),
    "config of 300 MB": ("vit", lambda f: _config(f, _long())),
    "config of 300 MB of nothing": ("vit", lambda f: _config(f, b"", 300 * 10**6)),
    "config 10⁶ deep": ("vit", lambda f: _config(f, _deep())),
    "circuit of 300 MB": ("circuit", lambda f: _file(f / "circuit.json", _long())),
    "circuit 10⁶ deep": ("circuit", lambda f: _file(f / "circuit.json", _deep())),
}  # fmt: skip


def make(name: str, folder: str) -> str:
    room = Path(folder)
    room.mkdir()
    return str(BOMBS[name][1](room))


def read(kind: str, path: str) -> None:
    import circuitvit as cv

    readers = {
        "vit": cv.load_vit,
        "splits": lambda p: cv.load_splits(p, image_size=8),
        "circuit": cv.Circuit.load,
    }
    readers[kind](path)


def attack(name: str, workers: Workers, place: Path, tally: Tally) -> None:
    """Read a bomb, and look at the time and the memory that it took."""
    made = workers.run("test_bombs:make", name, str(place / "room"))
    assert not made.error, made.message
    end = workers.run("test_bombs:read", BOMBS[name][0], made.value, seconds=30)
    # Of the processor: what a busy machine does meanwhile is not ours.
    tally.case(name, dataclasses.replace(end, seconds=end.processor).trouble(SECONDS, BYTES))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name, workers, tmp_path, tally):
    attack(name, workers, tmp_path, tally)
    tally.settle()


def name_classes(count: int) -> None:
    """Everything that takes class names, with very many."""
    import torch
    from attack import specimens as own

    import circuitvit as cv

    names = tuple(f"class {number}" for number in range(count))
    cv.Preprocessing(class_names=names)
    cv.ImageSet(own.images().images, own.images().labels, names)
    vit = own.vit()
    cv.with_new_head(vit, count, class_names=names)
    with torch.no_grad():
        vit.preprocessing = cv.Preprocessing(class_names=own.NAMES)


def test_very_many_class_names_take_no_time(workers, tally):
    end = workers.run("test_bombs:name_classes", 100_000, seconds=30)
    trouble = dataclasses.replace(end, seconds=end.processor).trouble(SECONDS, BYTES)
    tally.case("100,000 class names", trouble or end.message)
    tally.settle()
