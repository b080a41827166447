"""How text reaches the user: as it is, without markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 100  # columns of what is written to a pipe or file


def console(quiet: bool = False) -> Console:
    """As wide as the terminal, or ``PIPE_WIDTH`` elsewhere; a quiet one prints nothing."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def say(out: Console, lines: Iterable[str] | str, style: str | None = None) -> None:
    """Print a line or several."""
    for line in [lines] if isinstance(lines, str) else lines:
        out.print(line, style=style)
