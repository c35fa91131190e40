"""Tables that fit a terminal of eighty columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

ACRONYMS = ("nll", "ece", "crps", "mase")  # names of metrics that are written so
WIDTH = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int]) -> Table:
    """A table without a frame.

    Args:
        left: columns that hold texts, by position; all others hold numbers, at the right edge of theirs.
    """
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(header):
        made.add_column(column, justify="left" if index in left else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def shown(title: str, made: Table) -> None:
    """Print a table below an empty line and its title; what is too wide is folded within its column."""
    console = Console(width=WIDTH)
    with console.capture() as text:
        console.print(made)
    print("\n{}\n{}".format(title, text.get().rstrip("\n")), flush=True)
