"""What was done to a model, step by step; kept in `config.json` beside its weights.

It decides nothing: it is told by the model card, and may be edited without harm.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files import plain_json
from circuitvit.restoring import UnfitError, restored

MOST = 100
"""Steps; of more, the first and the latest are kept."""
VALUES = 1000
"""Numbers and texts in a step."""
LONGEST = 2000
"""Letters in a text."""


@dataclass(frozen=True)
class Step:
    """One thing that was done to a model.

    Attributes:
        act: what, in the past tense: `trained`, `compiled`, `heads pruned`, …
        model: fingerprint of the model that it was done to; None where it was not computed.
        details: with what, as plain JSON values by name.
        version: of the circuitvit that did it.
    """

    act: str
    model: str | None
    details: Mapping[str, Any]
    version: str

    def told(self) -> str:
        """The details in a line, without those that say nothing."""
        return "; ".join(_told(self.details))


History = tuple[Step, ...]


def after(history: History, act: str, details: Mapping[str, Any], model: str | None) -> History:
    """The history of a model that was made of another by one more step.

    Args:
        history: of the other.
        act: what was done.
        details: with what; None, and what is empty, is left out.
        model: the other's fingerprint, where it is known.
    """
    known = {name: value for name, value in details.items() if value not in (None, {}, [], ())}
    steps = (*history, Step(act, model, plain_json(known), version("circuitvit")))
    return steps if len(steps) <= MOST else (steps[0], *steps[-MOST + 1 :])


def plain_history(history: Any) -> list[dict[str, Any]]:
    """A model's history as plain JSON values.

    Raises:
        CircuitError: somebody assigned something else to it.
    """
    if not isinstance(history, tuple) or not all(isinstance(step, Step) for step in history):
        raise CircuitError(
            f"the model's history is a {type(history).__name__}, expected a tuple of its steps; "
            "nothing was written. Assign () to forget it."
        )
    return [asdict(step) for step in history]


def read_history(value: Any, path: Path) -> History:
    """The history of plain JSON values from a file, as `plain_history` gave them.

    Raises:
        CircuitError: they are something else, or more than any model's.
    """
    try:
        steps = restored(_History, {"steps": value}).steps
        for place, step in enumerate(steps):
            texts = [step.act, step.model or "", step.version, *_texts(step.details)]
            if len(texts) > VALUES or max(map(len, texts)) > LONGEST:
                raise UnfitError(f"steps[{place}] is larger than any step.")
        if len(steps) > MOST:
            raise UnfitError(f"it has {len(steps)} steps, at most {MOST} are read.")
    except UnfitError as cause:
        raise CircuitError(
            f"the history in {path} is not whole: {cause} Take the file from its source again, or "
            "remove `history` from it."
        ) from cause
    return steps


@dataclass(frozen=True)
class _History:
    steps: tuple[Step, ...]


def _texts(value: Any) -> Iterator[str]:
    """All names and values in a value, as texts."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def _told(details: Mapping[str, Any]) -> Iterator[str]:
    for name, value in details.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{words}: {', '.join(f'{key} {_shown(item)}' for key, item in value.items())}"
        elif value is True:
            yield words
        elif value is not False:
            yield f"{words} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:z.4g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)
