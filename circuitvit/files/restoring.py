"""Dataclasses made again of plain JSON values, by their annotations."""

import math
import os
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from circuitvit.errors import CircuitError, in_short, printable, warn
from circuitvit.files import plain_json
from circuitvit.files.records import RecordKind

Restored = TypeVar("Restored")

MOST = 2**128
"""Whole numbers are smaller than this, with either sign."""
_DIGITS = 39
"""Of such a number."""


class UnfitError(ValueError):
    """Raised for a value of the wrong type for its field."""


def load_record(
    path: str | os.PathLike[str],
    kind: RecordKind,
    made: type[Restored],
    *,
    derived: Collection[str] = (),
) -> Restored:
    """Read a record that holds the fields of a dataclass.

    It warns of fields that are not known, and of those that should follow from the others but
    don't.

    Args:
        path: the file, or the folder that `save` wrote.
        kind: what it must be.
        made: the dataclass; its `table`, if it has one, must be there too.
        derived: fields of the file that follow from the others.

    Raises:
        CircuitError: the file is missing, cut short, of another kind, or a field is missing or of
            the wrong kind.
    """
    (whole, check), surplus = kind.opened(path), list[str]()
    body = {name: value for name, value in whole.items() if name not in derived}
    with naming(kind.place(path), kind):
        result = restored(made, body, surplus=surplus)
        shows: Any = getattr(result, "table", None)
        if shows is not None:
            shows()  # what can't be shown doesn't fit together
        own = plain_json(cast(Any, result).as_dict()) if derived else {}
    check(surplus)
    warn_of_surplus(kind.place(path), surplus)
    warn_of_altered(kind.place(path), whole, own)
    return result


def warn_of_altered(
    path: str | os.PathLike[str], found: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Say once which fields of a file don't follow from the others, if any.

    Args:
        path: the file.
        found: its fields.
        own: as plain JSON values, what was made of them; fields that only one has don't count.
    """
    odd = [name for name in own.keys() & found.keys() if not _is_near(own[name], found[name])]
    if odd:
        warn(
            f"{path} has fields that don't follow from its others and are computed anew "
            f"({', '.join(sorted(odd))}): it was altered, or another version wrote it."
        )


def _is_near(one: Any, other: Any) -> bool:
    """Whether plain values are the same, numbers but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_is_near(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_near, one, other))
    if isinstance(one, float | int) and _is_number(other):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)


@contextmanager
def naming(path: str | os.PathLike[str], kind: RecordKind) -> Iterator[None]:
    """Say of what goes wrong inside that a file is not whole.

    Raises:
        CircuitError: something went wrong.
    """
    try:
        yield
    except (UnfitError, CircuitError) as cause:
        told = str(cause).rstrip(".")
        raise CircuitError(
            f"{path} is not a whole {kind.noun}: {told}. Take it from its source again, or "
            f"{kind.again}."
        ) from cause
    except (
        ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError,
        ValueError,
    ) as cause:  # fmt: skip
        raise CircuitError(
            f"{path} is not a whole {kind.noun}: its fields don't fit together "
            f"({printable(repr(cause), most=200)}). Take it from its source again, or {kind.again}."
        ) from cause


def warn_of_surplus(path: str | os.PathLike[str], surplus: Collection[str]) -> None:
    """Say once which fields of a file were not understood, if any."""
    if surplus:
        warn(
            f"{path} holds fields that this version doesn't know, so they are left out: "
            f"{', '.join(map(printable, sorted(surplus)[:8]))}."
        )


def restored(
    wanted: type[Restored], value: Any, *, where: str = "", surplus: list[str] | None = None
) -> Restored:
    """A value as an annotation describes it, made of plain JSON values.

    Args:
        wanted: a dataclass (all its fields have to be there, but for those that its `OPTIONAL`
            names; one with `from_dict` is made by that and decides for itself), a tuple, `Mapping`,
            `Literal`, a union with None, `Any`, or one of Python's plain types.
        value: lists, dicts, texts and numbers. What JSON doesn't have is taken as it is.
        where: the value's place, for messages.
        surplus: to which the places of unknown fields are added.

    Raises:
        UnfitError: the value is something else; its place is named.
    """
    surplus = [] if surplus is None else surplus
    made: Any = _restored(wanted, value, where, surplus)
    return made


def _restored(wanted: Any, value: Any, where: str, surplus: list[str]) -> Any:
    if wanted is Any:
        return _anything(value, where)
    if not _is_plain(value):
        return value
    if is_dataclass(wanted):
        return _dataclass(wanted, value, where, surplus)
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if origin in (Union, types.UnionType):
        arm = next((a for a in arguments if a is not type(None)), None)
        return None if value is None else _restored(arm, value, where, surplus)
    if origin is tuple:
        return _tuple(arguments, value, where, surplus)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, dict), where, value, "values by name")
        return {
            _key(arguments[0], key, where): _restored(arguments[1], item, f"{where}.{key}", surplus)
            for key, item in value.items()
        }
    if origin is Literal:
        _check(isinstance(value, str) and value in arguments, where, value, f"one of {arguments}")
        return value
    return _plain(wanted, value, where)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, dict | list | str | float | int)


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, surplus: list[str]) -> Any:
    _check(isinstance(value, list), where, value, "a list")
    each = arguments
    if len(arguments) == 2 and arguments[1] is ...:
        each = arguments[:1] * len(value)
    _check(len(value) == len(each), where, value, f"a list of {len(each)}")
    return tuple(
        _restored(kind, item, f"{where}[{place}]", surplus)
        for place, (kind, item) in enumerate(zip(each, value, strict=True))
    )


def _dataclass(wanted: Any, value: Any, where: str, surplus: list[str]) -> Any:
    _check(isinstance(value, dict), where, value, "named fields")
    inside = f"{where}." if where else ""
    names = {field.name for field in fields(wanted)}
    surplus += [f"{inside}{name}" for name in value if name not in names]
    if hasattr(wanted, "from_dict"):
        return wanted.from_dict(value)
    known = _annotations(wanted)
    optional: Collection[str] = getattr(wanted, "OPTIONAL", ())
    missing = [f"{inside}{name}" for name in known if name not in (value.keys() | optional)]
    if missing:
        raise UnfitError(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing.")
    return wanted(
        **{
            name: _restored(kind, value[name], f"{inside}{name}", surplus)
            for name, kind in known.items()
            if name in value
        }
    )


@lru_cache(maxsize=256)
def _annotations(wanted: type) -> dict[str, Any]:
    """The type of each field of a dataclass, by name."""
    hints = get_type_hints(wanted)
    return {field.name: hints[field.name] for field in fields(wanted)}  # pyright: ignore[reportArgumentType]


def _plain(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float:
        _check(_is_number(value), where, value, "a finite number")
        return float(value)
    named = {int: "a whole number", str: "a text", bool: "true or false"}
    right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    _check(right and _can_be_saved(value), where, value, named.get(wanted, f"a {wanted}"))
    return value


def _is_number(value: object) -> bool:
    """Whether a value is a number, and a finite one as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= sys.float_info.max


def _can_be_saved(value: object) -> bool:
    """Whether a plain value is one that a file of JSON can hold for every reader."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, int):
        return abs(value) < MOST
    return not isinstance(value, float) or math.isfinite(value)


def _anything(value: Any, where: str) -> Any:
    """A value whose kind is not known, if it can be saved again."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item
        else:
            _check(_can_be_saved(item), where, item, "a text of UTF-8 or a number of 64 bits")
    return value


def _key(wanted: Any, key: str, where: str) -> Any:
    if wanted is int:
        right = key.isascii() and key.isdecimal() and len(key) <= _DIGITS and str(int(key)) == key
        _check(right and int(key) < MOST, where, key, "whole numbers as names")
        return int(key)
    _check(_can_be_saved(key), where, key, "names in UTF-8")
    return key


def _check(right: bool, where: str, value: Any, expected: str) -> None:
    if not right:
        raise UnfitError(
            f"{printable(where) or 'it'} is {in_short(value, most=60)}, expected {expected}."
        )
