"""How text reaches the user: as it is, without markup."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 100  # columns of what is written to a pipe or file


def console(quiet: bool = False) -> Console:
    """As wide as the terminal, or ``PIPE_WIDTH`` elsewhere; a quiet one prints nothing."""
    from rich.console import Console

    if sys.stdout is None:  # closed by whoever started the program
        return Console(file=_nowhere(), width=PIPE_WIDTH)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def say(out: Console, lines: Iterable[str] | str, style: str | None = None) -> None:
    """Print a line or several."""
    for line in [lines] if isinstance(lines, str) else lines:
        try:
            out.print(line, style=style)
        except BrokenPipeError:  # nobody reads any more; the picture is worth more than the line
            out.file = _nowhere()
            sys.stdout = out.file


def _nowhere() -> TextIO:
    """What takes text and keeps none."""
    return Path(os.devnull).open("w", encoding="utf-8")


def replace_unknown_signs() -> None:
    """Let streams show "?" for what their encoding does not have, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
