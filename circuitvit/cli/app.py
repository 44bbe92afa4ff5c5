"""The command `circuitvit` itself: its help, its mistakes, its tables."""

import sys
import warnings
from collections.abc import Sequence

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitvit.errors import CircuitError, visible

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Find the circuit inside a Vision Transformer and compile it into a smaller one.",
    epilog="Start with 'circuitvit demo', or: inspect, discover, draw, compile, evaluate, export.",
)


def say(text: str, *, err: bool = False) -> None:
    """Print text; names from outside can't command the terminal."""
    typer.echo(visible(text), err=err)


def show(table: Sequence[Sequence[str]]) -> None:
    """Print a table, its header first; what stands in brackets goes below its number.

    Columns that don't fit on a line go below the others, behind the first column again, without the
    rows that say nothing there.
    """
    console, boundless = Console(), Console(width=10_000)
    start, every = 1, len(table[0])
    while start < every:
        end = start + 1
        while end < every:
            if boundless.measure(_drawn(table, start, end + 1)).maximum > console.width:
                break
            end += 1
        console.print(_drawn(table, start, end))
        start = end


def _drawn(table: Sequence[Sequence[str]], start: int, end: int) -> Table:
    header, *rows = [[visible(cell) for cell in (row[0], *row[start:end])] for row in table]
    drawn = Table(box=box.SIMPLE_HEAD, padding=0)
    for index, name in enumerate(header):
        justify = "right" if index else "left"
        drawn.add_column(Text(name.replace(", ", "\n")), justify=justify, no_wrap=index > 0)
    whole = len(header) == len(table[0])
    for cells in rows:
        if whole or any(cells[1:]):
            below = (cell.replace(" (", "\n(") for cell in cells[1:])
            drawn.add_row(*map(Text, (cells[0], *below)))  # brackets are no mark-up
    return drawn


def _one_line(message: Warning | str, *_: object) -> None:
    say(f"circuitvit: warning: {message}", err=True)


def main() -> None:
    """Run a command; what the user can mend is one clear line and exit code 2."""
    warnings.showwarning = _one_line
    try:
        app()
    except CircuitError as error:
        say(f"circuitvit: {error}", err=True)
        sys.exit(2)
