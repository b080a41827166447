"""Nothing that a stranger's file says reaches the terminal as a command."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vitrail.cli.console import command_line, printable, say


@given(st.text())
def test_no_control_character_is_printed(text):
    shown = printable(text)
    assert not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in shown if each not in "\n\t")
    assert printable(shown) == shown


def test_escapes_and_turns_are_spelt_out_and_other_words_stay():
    assert printable("a\x1b[31mred\x07 \u202etxt.exe") == "a\\x1b[31mred\\x07 \\u202etxt.exe"
    assert printable("ein Füchslein 狐狸 🦊\n\tok") == "ein Füchslein 狐狸 🦊\n\tok"
    file = io.StringIO()
    say(Console(file=file, markup=False), "title \x1b]0;owned\x07")
    assert file.getvalue() == "title \\x1b]0;owned\\x07\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_shell_reads_the_words_of_a_command_whatever_the_terminal_shows(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    words = ["a b", "it's", "狐狸.png", "é\\x", "\x1b[31m", os.fsdecode(b"\xff.png"), "$HOME", "", "'\n"]
    line = command_line(*words)
    line.encode(encoding)
    assert "\x1b" not in line
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert [os.fsdecode(each) for each in read.split(b"\0")[:-1]] == words


SAYS = """
from vitrail.cli.console import console, prepare_streams, say, tell
prepare_streams()
out = console()
for number in range(3):
    say(out, f"line {number}")
tell("the end")
"""


@pytest.mark.parametrize("full", ["stdout", "stderr", "both"])
def test_a_full_disk_below_the_output_ends_nothing_and_is_told_once(full):
    with Path("/dev/full").open("w") as disk:
        kept = subprocess.PIPE
        streams = {"stdout": kept if full == "stderr" else disk, "stderr": kept if full == "stdout" else disk}
        done = subprocess.run([sys.executable, "-c", SAYS], text=True, **streams)
    assert done.returncode == 0
    assert done.stdout == (None if full != "stderr" else "line 0\nline 1\nline 2\n")
    told = "stdout cannot be written: No space left on device; the command goes on without it\nthe end\n"
    assert done.stderr == (told if full == "stdout" else None)


def test_plain_words_are_quoted_as_ever():
    words = ["vitrail", "replay", "a b.png", "狐.png"]
    assert command_line(*words) == shlex.join(words)
