"""The command `circuitvit`: its help, how it prints text and tables, and its errors."""

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
    """Print text, without control characters of names from outside."""
    typer.echo(visible(text), err=err)


def show(table: Sequence[Sequence[str]]) -> None:
    """Print a table, whose first row is the header; brackets are printed below their number.

    Columns that don't fit on a line are printed below the others, beside the first column again and
    without the rows that are empty there.
    """
    console, unlimited = Console(), Console(width=10_000)
    start, every = 1, len(table[0])
    while start < every:
        end = start + 1
        while end < every:
            if unlimited.measure(_drawn(table, start, end + 1)).maximum > console.width:
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
    complete = len(header) == len(table[0])
    for cells in rows:
        if complete or any(cells[1:]):
            below = (cell.replace(" (", "\n(") for cell in cells[1:])
            drawn.add_row(*map(Text, (cells[0], *below)))  # in a Text, brackets aren't markup
    return drawn


def _print_warning(message: Warning | str, *_: object) -> None:
    say(f"circuitvit: warning: {message}", err=True)


def main() -> None:
    """Run a command; a CircuitError is printed as one line, with exit code 2."""
    warnings.showwarning = _print_warning
    try:
        app()
    except CircuitError as error:
        say(f"circuitvit: {error}", err=True)
        sys.exit(2)
