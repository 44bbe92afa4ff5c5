"""What is said to users: a library's failures in one line, and warnings at the line they wrote."""

import os
import re
import sys
import warnings
from pathlib import Path

import jaxtyping

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_IN_MEMORY = re.compile(r"<([^<>\s]+)[^<>]* at 0x[0-9a-fA-F]+>")
_OWN = (f"{Path(__file__).parents[1]}{os.sep}", f"{Path(jaxtyping.__file__).parent}{os.sep}", "<")
"""Files of this package and of what wraps its functions; and code that has no file, such as what
`dataclass` and beartype write."""

_UNSAFE = ("trust_remote_code", "weights_only", "allow_pickle")


def reason_of(cause: BaseException, *, most: int = 400) -> str:
    """The message of an error in one line, without colours, addresses in memory and a last dot.

    Sentences that advise to run or unpickle foreign code are left out, as this package never does.

    Args:
        cause: what was raised; where it says nothing, its type is named.
        most: characters; a longer message is cut.
    """
    text = _IN_MEMORY.sub(r"a \1", _COLOURS.sub("", str(cause)))
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    sentences = re.split(r"(?<=[.!?;])\s+", " ".join(lines))
    safe = " ".join(s for s in sentences if not any(word in s for word in _UNSAFE))
    safe = safe.strip().rstrip(".;")
    if not safe:
        return type(cause).__name__
    return safe if len(safe) <= most else safe[: most - 1] + "…"


def warn_caller(message: str) -> None:
    """Warn at the line of the user's that led here, however deep in the package this is."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
