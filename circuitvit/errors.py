"""The one exception that users of circuitvit meet, other libraries' reasons, and warnings."""

import re
import reprlib
import sys
import unicodedata
import warnings

_BETWEEN = ("circuitvit", "contextlib", "jaxtyping", "torch")
"""The package, and what decorates its functions: frames of these are not the user's."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_IN_MEMORY = re.compile(r"<([^<>\s]+)[^<>]* at 0x[0-9a-fA-F]+>")
_UNSAFE = ("trust_remote_code", "weights_only", "allow_pickle", "allow_unpickle")


class CircuitError(ValueError):
    """Raised for wrong input, with what was got, what was expected and what to do.

    The message says what was got, what was expected, and what to do about it.
    """


def reason_of(cause: BaseException, *, most: int = 400) -> str:
    """The message of an error in one line, without colours, addresses in memory and a last dot.

    Sentences that advise to run or unpickle foreign code are left out, as this package never does.

    Args:
        cause: what was raised; its type is named where the message would not be understood alone.
        most: characters; a longer message is cut.
    """
    text = _IN_MEMORY.sub(r"a \1", _COLOURS.sub("", str(cause)))
    sentences = re.split(r"(?<=[.!?;])\s+", " ".join(text.split()))
    safe = " ".join(s for s in sentences if not any(word in s for word in _UNSAFE))
    safe = safe.strip().rstrip(".;")
    if not safe:
        return type(cause).__name__
    if isinstance(cause, KeyError | AttributeError | ArithmeticError):
        safe = f"{type(cause).__name__}: {safe}"
    return safe if len(safe) <= most else safe[: most - 1] + "…"


def in_short(value: object, *, most: int = 120) -> str:
    """A value as Python writes it, cut to so many characters; its type where it can't be written.

    For values that may be of any size, as those from files are. Nested ones may be cut before.
    """
    try:
        brief = _Brief(most).repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that can't be shown"
    return brief if len(brief) <= most else brief[: most - 1] + "…"


class _Brief(reprlib.Repr):
    """Writes no more of large values than is shown."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = most
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 12

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 3 // 10
        return f"a number of some {digits} digits" if digits > 300 else super().repr_int(x, level)


def printable(name: str, *, most: int = 100) -> str:
    """A name from outside in a message: cut short, and only with what can be printed."""
    return visible(name if len(name) <= most else f"{name[:most]}…").replace("\n", "\\n")


def visible(text: str) -> str:
    """Text for a terminal: what could command it (ESC, bells, overwriting) is shown as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if _commands(letter) else letter for letter in text
    )


def _commands(letter: str) -> bool:
    """Whether a terminal acts on a character, or writes what follows in another direction."""
    category = unicodedata.category(letter)
    return letter not in "\n\t\u200c\u200d" and category in ("Cc", "Cf", "Cs", "Zl", "Zp")


def warn(message: str) -> None:
    """Warn as of the line that called the package, however deep inside it this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__") or ""):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    """Whether a frame is the package's or a decorator's; beartype's code has no module name."""
    return not module or module.partition(".")[0] in _BETWEEN or module.startswith("beartype")
