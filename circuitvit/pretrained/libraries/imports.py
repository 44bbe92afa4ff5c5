"""Imports timm, transformers and torchvision when they are needed, or says what to install."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.torchvision_ops import register_missing_ops

_EXTRAS = {
    "timm": "pip install 'circuitvit[timm]'",
    "transformers": "pip install transformers",
    "torchvision": "pip install torchvision",
}


def imported(name: str) -> Any:
    """The library, which takes seconds to import.

    Raises:
        CircuitError: it is not installed.
    """
    register_missing_ops()
    try:
        return import_module(name)
    except ImportError as cause:
        raise CircuitError(f"{name} is needed for this and not there ({cause}): {_EXTRAS[name]}") \
            from cause  # fmt: skip


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its progress bars and reports: what is wrong, our own messages say."""
    logging = imported("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def closest(name: str, known: Sequence[str]) -> str:
    """A sentence with the names that look most like one."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f" The closest are {', '.join(near)}." if near else ""
