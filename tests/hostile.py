"""Hostile values in the place of each field of a file of JSON."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from circuitvit.files.records import checksum, record_kind

NESTED: Any = 1
for _ in range(50):
    NESTED = [NESTED]
VALUES: tuple[Any, ...] = (
    [], {}, None, True, -1, 0, 1.5, 10**400, 2**63, 1e308, float("nan"), float("inf"), "",
    "x" * 10_000, "\ud800", "\0", "\x1b[31m<b>", NESTED, [1, 2], {"a": 1}, {"\ud800": 1}, [[1]],
)  # fmt: skip


def places(body: Any, most: int = 3) -> Iterator[tuple[str | int, ...]]:
    """The path to every field; of lists and of many names alike the first ones and the last."""
    if isinstance(body, dict):
        inside = list(body.items())
    elif isinstance(body, list):
        inside = list(enumerate(body))
    else:
        return
    for key, value in inside if len(inside) <= 24 else [*inside[:most], inside[-1]]:
        yield (key,)
        yield from ((key, *rest) for rest in places(value, most))


def altered(body: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a place, sealed again where it was."""
    new = deepcopy(body)
    inside = new
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    if "checksum" in new and place != ("checksum",):
        del new["checksum"]
        new["checksum"] = checksum(new)
    return new


def write(path: Path, body: Any) -> None:
    """Write it as it is, be it JSON or nearly so."""
    path.write_bytes(json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass"))


def sealed(body: Any) -> bool:
    """Whether files of its kind carry a checksum."""
    kind = record_kind(body)
    return kind is not None and kind.sealed
