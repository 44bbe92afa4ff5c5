"""Dataclasses made again of plain JSON values, by their annotations."""

import math
import os
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from circuitvit.errors import CircuitError, warn
from circuitvit.records import Kind

Made = TypeVar("Made")


class UnfitError(ValueError):
    """A value is not of the kind that its place asks for."""


def load_record(
    path: str | os.PathLike[str], kind: Kind, made: type[Made], *, derived: Collection[str] = ()
) -> Made:
    """Read a record that holds the fields of a dataclass.

    It warns of fields that are not known.

    Args:
        path: the file, or the folder that `save` wrote.
        kind: what it must be.
        made: the dataclass; its `table`, if it has one, must be there too.
        derived: fields of the file that follow from the others.

    Raises:
        CircuitError: the file is missing, cut short, of another kind, or a field is missing or of
            the wrong kind.
    """
    body = {name: value for name, value in kind.read(path).items() if name not in derived}
    surplus: list[str] = []
    with naming(kind.place(path), kind):
        result = restored(made, body, surplus=surplus)
        shows: Any = getattr(result, "table", None)
        if shows is not None:
            shows()  # what can't be shown doesn't fit together
    warn_of_surplus(kind.place(path), surplus)
    return result


@contextmanager
def naming(path: str | os.PathLike[str], kind: Kind) -> Iterator[None]:
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
    except (ArithmeticError, LookupError, StopIteration, TypeError, ValueError) as cause:
        raise CircuitError(
            f"{path} is not a whole {kind.noun}: its fields don't fit together ({cause!r}). Take "
            f"it from its source again, or {kind.again}."
        ) from cause


def warn_of_surplus(path: str | os.PathLike[str], surplus: Collection[str]) -> None:
    """Say once which fields of a file were not understood, if any."""
    if surplus:
        warn(
            f"{path} holds fields that this version doesn't know, so they are left out: "
            f"{', '.join(sorted(surplus)[:8])}."
        )


def restored(
    wanted: type[Made], value: Any, *, where: str = "", surplus: list[str] | None = None
) -> Made:
    """A value as an annotation describes it, made of plain JSON values.

    Args:
        wanted: a dataclass (all its fields have to be there; one with `from_dict` is made by that
            and decides for itself), `tuple[…, ...]`, `Mapping`,
            `Literal`, a union, `Any`, or one of Python's plain types.
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
    if wanted is Any or not _is_plain(value):
        return value
    if is_dataclass(wanted):
        return _dataclass(wanted, value, where, surplus)
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if origin in (Union, types.UnionType):
        arm = next((a for a in arguments if a is not type(None)), None)
        return None if value is None else _restored(arm, value, where, surplus)
    if origin is tuple:
        _check(isinstance(value, list), where, value, "a list")
        return tuple(
            _restored(arguments[0], item, f"{where}[{place}]", surplus)
            for place, item in enumerate(value)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, dict), where, value, "values by name")
        return {
            _key(arguments[0], key, where): _restored(arguments[1], item, f"{where}.{key}", surplus)
            for key, item in value.items()
        }
    if origin is Literal:
        _check(value in arguments, where, value, f"one of {arguments}")
        return value
    return _plain(wanted, value, where)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, dict | list | str | float | int)


def _dataclass(wanted: Any, value: Any, where: str, surplus: list[str]) -> Any:
    _check(isinstance(value, dict), where, value, "named fields")
    known, inside = {field.name: field for field in fields(wanted)}, f"{where}." if where else ""
    surplus += [f"{inside}{name}" for name in value if name not in known]
    if hasattr(wanted, "from_dict"):
        return wanted.from_dict(value)
    missing = [f"{inside}{name}" for name in known if name not in value]
    if missing:
        raise UnfitError(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing.")
    hints = get_type_hints(wanted)
    return wanted(
        **{name: _restored(hints[name], value[name], f"{inside}{name}", surplus) for name in known}
    )


def _plain(wanted: Any, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is float:
        _check(number and math.isfinite(value), where, value, "a finite number")
        return float(value)
    named = {int: "a whole number", str: "a text", bool: "true or false"}
    right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    _check(right, where, value, named.get(wanted, f"a {wanted}"))
    return value


def _key(wanted: Any, key: str, where: str) -> Any:
    if wanted is int:
        _check(key.isdecimal() and str(int(key)) == key, where, key, "whole numbers as names")
        return int(key)
    return key


def _check(right: bool, where: str, value: Any, expected: str) -> None:
    if not right:
        raise UnfitError(f"{where or 'it'} is {str(value)[:60]!r}, expected {expected}.")
