"""How text reaches the user: as it is, without markup."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 100  # columns of what is written to a pipe or file


def console(quiet: bool = False) -> Console:
    """As wide as the terminal, or ``PIPE_WIDTH`` elsewhere; a quiet one prints nothing.

    Where nobody reads, because the output is closed or the reader has gone, nothing is shown and the command goes on:
    the picture is worth more than the line.
    """
    from rich.console import Console

    class Patient(Console):
        """Goes on when its reader has gone, where rich would end the program."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    if sys.stdout is None:  # closed by whoever started the program
        return Console(file=Path(os.devnull).open("w", encoding="utf-8"), width=PIPE_WIDTH, quiet=True)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Patient(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def say(out: Console, lines: Iterable[str] | str, style: str | None = None) -> None:
    """Print a line or several."""
    for line in [lines] if isinstance(lines, str) else lines:
        out.print(line, style=style)


def replace_unknown_signs() -> None:
    """Let streams show "?" for what their encoding does not have, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
