"""A closed terminal ends a command as Ctrl-C does, and one that shall outlive its terminal does."""

import os
import pty
import signal
import sys
import time

import pytest

WORKS = """
import signal, sys, threading, time
from vitrail.cli.console import console, prepare_streams, say
from vitrail.cli.signals import stopping
prepare_streams()
out, stopped = console(), threading.Event()
with stopping(stopped.set):
    for step in range(int(sys.argv[2])):
        say(out, f"step {step}")
        if stopped.wait(0.01):
            break
time.sleep(0.2)  # the shell's hangup may come when the block is over
open(sys.argv[1], "w").write("stopped" if stopped.is_set() else "finished")
"""


def in_a_terminal_that_closes(words):
    """Start a command as the leader of a terminal of its own, close this when the command works, and wait for it."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(words[0], words)
    said = b""
    while b"step 1" not in said:
        said += os.read(terminal, 1024)
    os.close(terminal)
    time.sleep(0.1)
    os.kill(child, signal.SIGHUP)  # as a shell passes on what it has heard itself
    for _ in range(6000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("it went on without its terminal")


@pytest.mark.parametrize(("heeds", "steps", "kept"), [(True, 10_000, "stopped"), (False, 40, "finished")])
def test_a_closed_terminal_stops_a_command_unless_its_parent_ignores_that(tmp_path, heeds, steps, kept):
    ignoring = () if heeds else ("/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh")  # as nohup does
    file = tmp_path / "kept"
    assert in_a_terminal_that_closes([*ignoring, sys.executable, "-c", WORKS, str(file), str(steps)]) == 0
    assert file.read_text() == kept
