"""Checks of numbers. Knows no torch."""

import operator
from numbers import Integral, Real

from circuitvit.errors import CircuitError, in_short


def whole(value: object, name: str) -> int:
    """A whole number as Python's own int, numpy's and tensors' included.

    Raises:
        CircuitError: it is none.
    """
    if isinstance(value, bool):
        raise CircuitError(f"{name} is {value!r}, expected a whole number.")
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise CircuitError(f"{name} is {value!r}, expected a whole number.") from None


def real(value: object, name: str) -> float:
    """A number as Python's own float, numpy's and tensors' included.

    Raises:
        CircuitError: it is none.
    """
    if not isinstance(value, str):
        try:
            return float(value)  # pyright: ignore[reportArgumentType]
        except (OverflowError, TypeError, ValueError):  # too large, or none
            pass
    raise CircuitError(f"{name} is {in_short(value)}, expected a number.")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, Python's or numpy's; truth values are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or numpy's; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)
