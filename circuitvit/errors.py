"""The one exception that users of circuitvit meet, and warnings that name their own line."""

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_BETWEEN = ("contextlib.py", "_contextlib.py", "_decorator.py")
"""Files of decorators (torch's, jaxtyping's) whose frames lie between the package's own."""


class CircuitError(ValueError):
    """Something was asked for that cannot be done.

    The message says what was got, what was expected, and what to do about it.
    """


def warn(message: str) -> None:
    """Warn as of the line that called the package, however deep inside it this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_ours(path: str) -> bool:
    return path.startswith((_PACKAGE, "<@beartype")) or path.endswith(_BETWEEN)
