"""The history of a model, step by step; stored in `config.json` beside its weights.

It decides nothing: it is told by the model card, and may be edited without harm.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError, in_short, warn
from circuitvit.files import plain_json
from circuitvit.files.restoring import MOST as LARGEST
from circuitvit.files.restoring import UnfitError, restored, warn_of_surplus

MOST = 100
"""Steps; of more, the first and the latest are kept."""
VALUES = 1000
"""Numbers and texts in a step."""
LONGEST = 2000
"""Letters in a text."""
LEFT_OUT = "earlier_steps_left_out"
"""The detail of a step that counts those between it and the first that are no longer kept."""


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
        return told_in_line(self.details)


History = tuple[Step, ...]


def after(history: Any, act: str, details: Mapping[str, Any], model: str | None) -> History:
    """The history of a model that was made of another by one more step, within the bounds.

    Args:
        history: of the other.
        act: what was done.
        details: with what; None, and what is empty, is left out.
        model: the other's fingerprint, where it is known.

    Raises:
        CircuitError: somebody assigned something else to the other's history.
    """
    known = {name: value for name, value in details.items() if value not in (None, {}, [], ())}
    step = Step(act, model, plain_json(known), version("circuitvit"))
    return _bounded((*check_history(history), step))


def check_history(history: Any) -> History:
    """A model's history, if it is one.

    Raises:
        CircuitError: somebody assigned something else to it.
    """
    if isinstance(history, tuple):
        strangers = [step for step in history if not _is_step(step)]
        if not strangers:
            return history
        what = f"holds {in_short(strangers[0], most=60)}"
    else:
        what = f"is a {type(history).__name__}"
    raise CircuitError(
        f"the model's history {what}, expected a tuple of its steps. Assign () to forget it."
    )


def _is_step(step: Any) -> bool:
    if not isinstance(step, Step) or not isinstance(step.details, Mapping):
        return False
    return all(isinstance(text, str) for text in (step.act, step.model or "", step.version))


def plain_history(history: Any) -> list[dict[str, Any]]:
    """A model's history as plain JSON values that `read_history` takes: cut to the bounds.

    What is cut short says so: a text ends in `…`, a value tells how much it held, and the step
    after others that were left out counts them.

    Raises:
        CircuitError: somebody assigned something else to it.
    """
    steps = check_history(history)
    plain = (replace(step, details=plain_json(dict(step.details))) for step in steps)
    return [asdict(step) for step in _bounded(tuple(plain))]


def read_history(value: Any, path: Path) -> History:
    """The history of plain JSON values from a file, as `plain_history` gave them.

    It decides nothing, so one that is something else, or larger than any model's, is left out with
    a warning; fields that are not known are named likewise.
    """
    surplus = list[str]()
    try:
        steps = restored(_History, {"steps": value}, surplus=surplus).steps
        for place, step in enumerate(steps):
            texts = [step.act, step.model or "", step.version, *_texts(step.details)]
            if len(texts) > VALUES or max(map(len, texts)) > LONGEST:
                raise UnfitError(f"steps[{place}] is larger than any step.")
        if len(steps) > MOST:
            raise UnfitError(f"it has {len(steps)} steps, at most {MOST} are read.")
    except UnfitError as cause:
        warn(
            f"the history in {path} is not whole, so it is left out: {cause} The model itself is "
            "not affected. Take the file from its source again, or remove `history` from it."
        )
        return ()
    warn_of_surplus(path, surplus)
    return steps


def _bounded(steps: History) -> History:
    """Steps that can be read again: of too many the first and the latest, and each cut short."""
    if len(steps) > MOST:
        gone, (next_one, *latest) = steps[1 : 1 - MOST], steps[1 - MOST :]
        count = len(gone) + sum(_left_out(step) for step in (*gone, next_one))
        marked = replace(next_one, details={**next_one.details, LEFT_OUT: count})
        steps = (steps[0], marked, *latest)
    return tuple(map(_short_step, steps))


def _left_out(step: Step) -> int:
    count = step.details.get(LEFT_OUT, 0)
    return count if type(count) is int else 0


def _short_step(step: Step) -> Step:
    """A step within the size bounds: its largest values are replaced by their sizes."""
    details = {_short(name): _short(value) for name, value in step.details.items()}
    sizes = {name: sum(1 for _ in _texts(value)) for name, value in details.items()}
    room = VALUES - 3 - len(details)  # act, model, version, names
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if sum(sizes.values()) <= room or sizes[name] <= 1:
            break
        details[name], sizes[name] = f"{sizes[name]:,} values, left out", 1
    if sum(sizes.values()) > room:
        kept = dict(list(details.items())[: VALUES // 2 - 4])
        details = kept | {"values_left_out": len(details) - len(kept)}
    return Step(_short(step.act), _short(step.model), details, _short(step.version))


def _short(value: Any) -> Any:
    """A plain value whose texts and numbers are no longer than any that is read."""
    if isinstance(value, dict):
        return {_short(name): _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, int) and abs(value) >= LARGEST:
        return in_short(value)
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[: LONGEST - 1]}…"
    return value


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


def told_in_line(details: Mapping[str, Any]) -> str:
    """Details in a line, without those that say nothing."""
    return "; ".join(_told(details))


def _told(details: Mapping[str, Any]) -> Iterator[str]:
    for name, value in details.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{words}: {_shown(value)}"
        elif value is True:
            yield words
        elif value is not False:
            yield f"{words} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:z.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_nested(item)}" for key, item in value.items())
    return ", ".join(map(_nested, value)) if isinstance(value, list) else str(value)


def _nested(value: Any) -> str:
    return f"({_shown(value)})" if isinstance(value, Mapping | list) else _shown(value)
