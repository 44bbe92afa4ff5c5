"""A progress bar with a rate and an ETA on a terminal; silence elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from circuitvit.errors import visible

_SHOWN: ContextVar[Progress | None] = ContextVar("shown", default=None)
"""The bar around this one: two at once would write over each other."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:z.1f}/s" if task.speed else "")


@contextmanager
def progress(
    what: str, total: int, *, done: int = 0, show: bool | None = None
) -> Iterator[Callable[..., None]]:
    """Show how far some work is, on standard error, if that is a terminal.

    Work inside other work gets a line below it, as long as it lasts.

    Args:
        what: the work, in a word or two.
        total: how many steps it has.
        done: steps that were done before, in a run that is resumed.
        show: whether to draw it; None is only on a terminal.

    Yields:
        A function to call after each step, with an optional note to show, such as `kept 12`.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda note="", steps=1: None
        return
    around = _SHOWN.get()
    if around is not None:
        yield from _line(around, what, total, done)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        token = _SHOWN.set(bar)
        try:
            yield from _line(bar, what, total, done, stays=True)
        finally:
            _SHOWN.reset(token)


def _line(
    bar: Progress, what: str, total: int, done: int, *, stays: bool = False
) -> Iterator[Callable[..., None]]:
    task = bar.add_task(visible(what), total=total, completed=done, note="")

    def advance(note: str = "", steps: int = 1) -> None:
        bar.update(task, advance=steps, note=visible(note))

    try:
        yield advance
    finally:
        if not stays:
            bar.remove_task(task)
