"""Nothing that a stranger's file says reaches the terminal as a command."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vitrail.terminal import printable, say


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
