"""A progress bar for terminals; silence anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, done: int, *, show: bool | None) -> Iterator[Callable[[str], None]]:
    """Yield what to call after each step, with a text that says how it goes.

    Args:
        total: number of steps.
        done: steps that were done before, in a run that is resumed.
        show: whether to draw it; None is only on a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total, completed=done, rate="")

        def step(text: str) -> None:
            speed = bar.tasks[0].speed
            rate = "" if speed is None else f"{speed:.1f} steps/s"
            bar.update(task, advance=1, description=text, rate=rate)

        yield step
