"""What experiments have to say, on a console."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.cli.console import say
from vitrail.cli.meter import Meter
from vitrail.experiments.report.formats import ARROWS, GAP, head_of, notes_of, parts_of, plain
from vitrail.experiments.report.tables import Number, Table

if TYPE_CHECKING:
    from rich.console import Console


@frozen(eq=False)
class ConsoleListener:
    """See ``vitrail.experiments.analysis.measurement.Listener``."""

    console: Console

    def say(self, lines: Iterable[str] | str) -> None:
        """Print them."""
        say(self.console, lines)

    def show(self, table: Table) -> None:
        """Print it."""
        show(table, self.console)

    def count(self, name: str, total: int | None) -> Meter:
        """A bar, or sparse lines."""
        return Meter(self.console, name, total)


def show(table: Table, console: Console) -> None:
    """Print a table, in several parts if it is wider than the terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    say(console, f"\n{table.title}", style="bold")
    texts = [[plain(cell) for cell in row] for row in table.rows]
    heads = [head_of(heading, ARROWS) for heading in table.head]
    for part in parts_of(heads, texts, console.width):
        grid = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="")
        for column in part:
            is_text = all(isinstance(row[column], str) for row in table.rows) and column != 1
            justify = "left" if is_text else "right"
            grid.add_column(Text(heads[column]), justify=justify, overflow="fold", no_wrap=not is_text)  # type: ignore[arg-type]
        for row, cells in zip(table.rows, texts, strict=True):
            grid.add_row(*(Text(cells[column], style=_style(row[column])) for column in part))
        console.print(grid, soft_wrap=False)
    say(console, notes_of(table, "*"))


def _style(cell: str | Number) -> str:
    return "bold" if isinstance(cell, Number) and cell.marked else ""
