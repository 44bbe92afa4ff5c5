"""Names by which callables are known again in another run, which `resume` needs.

A function of a module has one: its module and name. A lambda, a function within a function and an
object that doesn't say its settings have none: another may be called the same.
"""

import inspect
from functools import partial
from typing import Any

from torch import nn

from circuitvit.errors import CircuitError


def lasting_name(value: object) -> str | None:
    """The name that tells a callable from all others; None where there is none.

    Names are told as they are. Partial functions are told with their arguments, objects by their
    own `__repr__`.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, partial):
        return _of_partial(value)
    if inspect.ismethod(value) and not isinstance(value.__self__, type):
        owner = _of_object(value.__self__)
        return None if owner is None else f"{owner}.{value.__name__}"
    name = getattr(value, "__qualname__", None)
    if name is None:
        return _of_object(value)
    return None if "<" in name else f"{getattr(value, '__module__', None)}.{name}"


def checked_name(value: object, option: str) -> str:
    """The lasting name of an option's value.

    Raises:
        CircuitError: it has none.
    """
    name = lasting_name(value)
    if name is None:
        called = getattr(value, "__qualname__", type(value).__qualname__)
        raise CircuitError(
            f"{option} is {called}, which resume can't tell from others that are called the same, "
            "so it might take theirs for its own. Give a function that is defined at the top of a "
            "module, or an object whose __repr__ tells its settings; or leave resume out."
        )
    return name


def _of_partial(value: "partial[Any]") -> str | None:
    given = [("", lasting_name(value.func)), *(("", _literal(item)) for item in value.args)]
    given += [(f"{name}=", _literal(item)) for name, item in sorted(value.keywords.items())]
    if any(told is None for _, told in given):
        return None
    return f"partial({', '.join(f'{name}{told}' for name, told in given)})"


def _literal(value: object) -> str | None:
    """How an argument is written down; None where that wouldn't say all of it."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        told = [_literal(item) for item in value]
        return None if None in told else f"({', '.join(map(str, told))})"
    return lasting_name(value) if callable(value) else None


def _of_object(value: object) -> str | None:
    if type(value).__repr__ is object.__repr__ or isinstance(value, nn.Module):
        return None  # a module's tells no weights
    told = repr(value)
    return None if " at 0x" in told else f"{type(value).__module__}.{told}"
