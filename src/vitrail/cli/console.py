"""Text output: without markup, and with control characters and changes of text direction escaped."""

from __future__ import annotations

import io
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

TURNS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # control the direction of text
PIPE_WIDTH = 100  # characters per line of a pipe or file


def console(quiet: bool = False) -> Console:
    """Return a console as wide as the terminal, or ``PIPE_WIDTH`` elsewhere; a quiet one prints nothing.

    If the reader of stdout ends, or stdout cannot be written to, e.g. because the disk of a log is full, output is
    discarded and the command continues, so that no picture is lost.
    """
    from rich.console import Console

    class Patient(Console):
        """Console that is silenced where rich would end the program, or raise."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            _discard(sys.stdout)

        def _check_buffer(self) -> None:
            try:
                super()._check_buffer()
            except OSError as error:
                self.on_broken_pipe()
                tell(f"stdout cannot be written: {error.strerror}; the command goes on without it")

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Patient(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def say(out: Console, lines: Iterable[str] | str, style: str | None = None) -> None:
    """Print lines with control characters escaped.

    Args:
        out: The console.
        lines: One line, or several.
        style: A style of rich, e.g. "bold".
    """
    for line in [lines] if isinstance(lines, str) else lines:
        out.print(printable(line), style=style)


def tell(line: str) -> None:
    """Write a line to stderr with control characters escaped; without effect if stderr cannot be written to."""
    try:
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def printable(text: str) -> str:
    """Escape control characters and changes of text direction, which a text from an untrusted file may contain."""
    return "".join(each if _is_harmless(each) else each.encode("unicode_escape").decode() for each in text)


def command_line(*words: str) -> str:
    """Quote the words of a command for a shell, in characters that the terminal can show.

    A word with characters that the output's encoding lacks, or that are unprintable, is written as bytes: ``$'...'``.
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


def prepare_streams() -> None:
    """Make the standard streams safe to use, before anything is opened or printed.

    Those that the parent process closed become the null device: otherwise the next file or socket would get the
    descriptor, and what libraries print would be written into it. Characters that an output's encoding lacks are
    replaced by "?".
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, _null_device(number, mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard(stream: TextIO) -> None:
    """Lead the descriptor of a stream to the null device, so that what the stream still holds can be flushed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _null_device(number: int, mode: str) -> IO[Any]:
    """Open the null device at a descriptor, which must be free, for this process and those that it starts."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
    return open(number, mode, encoding="utf-8", closefd=False)
