"""Ways in which files are damaged or forged; every one is drawn from a generator.

Each takes the bytes of a file and gives others, or None where it can't be done to this file.
"""

import contextlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Draw = random.Random
ODD_TEXTS: list[Any] = [
    "{x", "", "[" * 100_000, "null", "1", "NaN", "9" * 4301, '"\\ud800"', "x", "f" * 64, "[]", "{}", 3,
    None,
]  # fmt: skip
LONG_NUMBER = "\x00long\x00"
"""Stands for an integer of 4,301 digits, which Python's own writer refuses to write."""
FORGED: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 10**400, 1e308, 1e-300, float("nan"),
    float("inf"), "", "x", "\ud800", "a\x00b", "x" * 100_000, "<script>", [], [None], {}, {"a": 1},
    [[[[]]]], LONG_NUMBER, "../../x", "/etc/passwd", {"": {}}, ["a", "a"], [1, "2"],
]  # fmt: skip


def flipped(data: bytes, draw: Draw) -> bytes | None:
    """One to eight bits turned over."""
    if not data:
        return None
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flipped_at_the_start(data: bytes, draw: Draw) -> bytes | None:
    """The same among the first bytes, where headers are."""
    head = flipped(data[:64], draw)
    return None if head is None else head + data[64:]


def cut(data: bytes, draw: Draw) -> bytes | None:
    return data[: draw.randrange(len(data))] if data else None


def zeroed(data: bytes, draw: Draw) -> bytes | None:
    start = draw.randrange(len(data) or 1)
    length = min(draw.choice([1, 16, 512, 4096]), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def doubled(data: bytes, draw: Draw) -> bytes | None:
    """A part that is there twice."""
    start = draw.randrange(len(data) or 1)
    end = start + draw.choice([1, 8, 100, len(data)])
    return data[:end] + data[start:end] + data[end:]


def inserted(data: bytes, draw: Draw) -> bytes | None:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.randbytes(draw.choice([1, 8, 100])) + data[place:]


def appended(data: bytes, draw: Draw) -> bytes | None:
    return data + draw.choice([b"\x00", b" \n", draw.randbytes(30), data])


def emptied(data: bytes, draw: Draw) -> bytes | None:
    return b""


def another_kind(data: bytes, draw: Draw) -> bytes | None:
    """What other programs write."""
    return draw.choice([
        b"PK\x03\x04" + bytes(40), b"\x89PNG\r\n\x1a\n" + bytes(30), b"<html>not found</html>",
        b"\x80\x04K\x01.", b"version https://git-lfs.github.com/spec/v1\n", b"[]", b"{}", b"null",
        b"1", b'"text"', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\x93NUMPY\x01\x00", b"PAR1PAR1",
        bytes(4096), b"[" * 100_000, b'{"a":' * 100_000, b"9" * 4301, b"NaN", b'{"a": 1e999}',
        b"\x1f\x8b\x08", json.dumps({"format": "circuitvit.circuit"}).encode(),
    ])  # fmt: skip


def _places(value: Any, found: list) -> list:
    """Every container and key of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(inner):
        found.append((value, key))
        if isinstance(item, dict | list) and item:
            _places(item, found)
    return found


def _text(value: Any, draw: Draw) -> bytes:
    written = json.dumps(value, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5)
    text = written.replace(json.dumps(LONG_NUMBER), "7" * 4301)
    deep = "[" * 2000 + "]" * 2000
    return text.replace(json.dumps("\x00deep"), deep).encode("utf-8", "surrogatepass")


def _sealed(body: Any) -> Any:
    """The record with the checksum that it would have, so that only its fields tell."""
    if isinstance(body, dict) and "checksum" in body:
        from circuitvit.files.records import checksum

        with contextlib.suppress(ValueError, UnicodeError, RecursionError, TypeError):
            rest = {name: value for name, value in body.items() if name != "checksum"}
            return {**rest, "checksum": checksum(rest)}
    return body


def _forge(body: Any, draw: Draw) -> Any:
    """One place of a JSON value forged: another type, gone, doubled, or a name changed."""
    places = _places(body, [])
    if not places:
        return draw.choice(FORGED)
    # Few places lie near the top, where the fields are; they are chosen as often as the rest.
    top = [(holder, key) for holder, key in places if holder is body]
    holder, key = draw.choice(draw.choice([places, top]))
    act = draw.choice(["forge", "forge", "forge", "forge", "drop", "rename", "deep", "near"])
    if act == "forge":
        holder[key] = draw.choice(FORGED)
    elif act == "deep":
        holder[key] = "\x00deep"
    elif act == "drop":
        del holder[key]
    elif act == "near":
        value = holder[key]
        swapped = {bool: lambda v: not v, int: lambda v: draw.choice([-v, v + 1, v * 10**9, str(v)]),
                   float: lambda v: draw.choice([-v, str(v), v * 1e300, int(v)]),
                   str: lambda v: draw.choice([v + " ", v[1:], [v], v.upper(), 0]),
                   list: lambda v: draw.choice([v[1:], v + v, v[::-1], dict(enumerate(map(str, v)))]),
                   dict: lambda v: draw.choice([list(v), list(v.items()), {**v, "more": 1}])}  # fmt: skip
        holder[key] = swapped.get(type(value), lambda v: 0)(value)
    elif isinstance(holder, dict):
        holder[draw.choice(["more", "", "format", str(key) + "x", "\ud800"])] = holder.pop(key)
    else:
        holder.append(holder[key])
    return body


def forged_json(data: bytes, draw: Draw, *, seal: bool = False) -> bytes | None:
    try:
        body = json.loads(data)
    except ValueError:
        return None
    if not isinstance(body, dict | list):
        return None
    forged = _forge(body, draw)
    return _text(_sealed(forged) if seal else forged, draw)


def resealed_json(data: bytes, draw: Draw) -> bytes | None:
    """Forged, and the checksum made right again."""
    if b'"checksum"' not in data:
        return None
    return forged_json(data, draw, seal=True)


def _header(data: bytes) -> tuple[Any, bytes] | None:
    """A safetensors file's header and its tensors' bytes."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return None
    return (header, data[8 + size :]) if isinstance(header, dict) else None


def forged_header(data: bytes, draw: Draw) -> bytes | None:
    """The header of a safetensors file: offsets, shapes, dtypes, names, its own size."""
    found = _header(data)
    if found is None:
        return None
    header, tensors = found
    names = [name for name in header if name != "__metadata__"]
    act = draw.choice(["data_offsets", "shape", "dtype", "name", "size", "swap", "any"])
    if act == "any" or not names:
        header = _forge(header, draw)
    elif act == "name":
        old = draw.choice(names)
        header[draw.choice([old + "x", "", "x" * 5000, "a\x00", "\ud800", old[1:]])] = header.pop(
            old
        )
    elif act == "swap":
        one, other = draw.choice(names), draw.choice(names)
        header[one], header[other] = header[other], header[one]
    elif act != "size":
        entry = header[draw.choice(names)]
        entry[act] = draw.choice({
            "data_offsets": [[0, 2**63], [5, 1], [0, 0], [-1, 4], ["0", "4"], entry["data_offsets"][::-1]],
            "shape": [[2**62], [2**32, 2**32], [], [0], [-1], [1, *entry["shape"]], entry["shape"][::-1]],
            "dtype": ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E5M2", "C64", "I64", "Q9", 1],
        }[act])  # fmt: skip
    text = _text(header, draw)
    size = draw.choice([0, 1, len(text) + 8, 2**40, 2**63]) if act == "size" else len(text)
    return struct.pack("<Q", size) + text + tensors


def forged_metadata(data: bytes, draw: Draw) -> bytes | None:
    """What a safetensors file says of itself: another text, or JSON with another value in it."""
    found = _header(data)
    if found is None:
        return None
    header, tensors = found
    told = header.get("__metadata__")
    if not isinstance(told, dict) or not told:
        return None
    key, inner = draw.choice(sorted(told)), None
    with contextlib.suppress(ValueError, TypeError):
        inner = json.loads(told[key])
    if isinstance(inner, dict | list) and draw.random() < 0.8:
        told[key] = _text(_forge(inner, draw), draw).decode("utf-8", "surrogatepass")
    else:
        told[key] = draw.choice(ODD_TEXTS)
    text = _text(header, draw)
    return struct.pack("<Q", len(text)) + text + tensors


def forged_zip(data: bytes, draw: Draw) -> bytes | None:
    """Sizes that a zip archive's or an array's header claims."""
    if not data.startswith(b"PK"):
        return None
    place = data.find(
        draw.choice([b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b"(12,", b"'shape'"])
    )
    if place < 0:
        return None
    changed = bytearray(data)
    for offset in range(draw.choice([18, 20, 24])):
        if draw.random() < 0.3 and place + 8 + offset < len(changed):
            changed[place + 8 + offset] = draw.choice([0xFF, 0, 0x7F, ord("9")])
    return bytes(changed)


Change = Callable[[bytes, Draw], bytes | None]
GENERAL: list[Change] = [
    flipped, flipped, flipped, flipped_at_the_start, cut, cut, zeroed, doubled, inserted, appended,
    emptied, another_kind,
]  # fmt: skip
FORGERIES: list[Change] = [
    forged_json, resealed_json, forged_header, forged_metadata, forged_zip,
]  # fmt: skip


def in_place_of_a_file(path: Path, draw: Draw) -> str:
    """Something that is no file under its name; what it is."""
    kind = draw.choice(["folder", "fifo", "loop", "nothing", "dangling", "device", "no file"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere/at/all")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    return kind


def mutate(path: Path, draw: Draw) -> tuple[str, bool]:
    """Damage a file; how, and whether it was sealed again so that other values are no fault."""
    if draw.random() < 0.06:
        return in_place_of_a_file(path, draw), False
    data = path.read_bytes()
    own = [change for change in FORGERIES if change(data, draw) is not None]
    while True:
        change = draw.choice(own) if own and draw.random() < 0.55 else draw.choice(GENERAL)
        changed = change(data, draw)
        if changed is not None and changed != data:
            path.write_bytes(changed)
            return change.__name__, change in (resealed_json, forged_metadata)
