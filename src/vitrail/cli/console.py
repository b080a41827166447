"""How text reaches the user: as it is, without markup, and without what would move a terminal's cursor or its text."""

from __future__ import annotations

import io
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

TURNS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # of the direction of writing
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
        out.print(printable(line), style=style)


def printable(text: str) -> str:
    """A text, which may come from a stranger's file, with control characters and turns of direction spelt out."""
    return "".join(each if _is_harmless(each) else each.encode("unicode_escape").decode() for each in text)


def command_line(*words: str) -> str:
    """Words of a command as a shell reads them, each spelt so that the terminal can show it.

    A name with characters that its encoding does not have, or that are no text, is spelt in bytes: ``$'...'``.
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        word.encode(encoding)
    except UnicodeError:
        return _in_bytes(word)
    return shlex.quote(word) if printable(word) == word else _in_bytes(word)


def _in_bytes(word: str) -> str:
    shown = (chr(each) if 32 <= each < 127 and each not in b"'\\" else f"\\x{each:02x}" for each in os.fsencode(word))
    return f"$'{''.join(shown)}'"


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or not (unicodedata.category(character) in ("Cc", "Cs") or character in TURNS)


def replace_unknown_signs() -> None:
    """Let streams show "?" for what their encoding does not have, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
