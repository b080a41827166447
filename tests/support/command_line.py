"""Runs ``vitrail`` command lines: in this process, in one fresh process without torch, or as a real program."""

import json
import os
import signal
import subprocess
import sys

import pytest
from attrs import frozen

from vitrail.cli import app as cli

# Answers command lines one after the other and says which heavy libraries each has imported.
FRESH = """
import contextlib, io, json, os, sys
from vitrail.cli import app as cli
os.chdir(sys.argv[1])
answers = []
for line in json.load(sys.stdin):
    out, err, sys.argv, code = io.StringIO(), io.StringIO(), ["vitrail", *line], None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    heavy = sorted({"torch", "diffusers", "transformers", "numpy"} & set(sys.modules))
    answers.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(answers))
"""

STARTED = []  # by ``start``


@frozen
class Answer:
    """What a command line came to."""

    code: int
    out: str
    err: str
    heavy: tuple[str, ...] = ()


def vitrail(monkeypatch, capsys, *words):
    """One command line in this process."""
    monkeypatch.setattr(sys, "argv", ["vitrail", *map(str, words)])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert signal.getsignal(signal.SIGINT) is before
    caught = capsys.readouterr()
    return Answer(stop.value.code, caught.out, caught.err)


def fresh_answers(folder, lines):
    """Many command lines in one process that starts without torch; one answer each."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, folder], input=json.dumps(lines), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def start(folder, *words):
    """The program itself, with its output as a pipe; what outlives its test is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitrail", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def end_all():
    """Kill what was started and still runs, and close its pipes."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(process, part):
    """Read lines until one has the part in it."""
    for line in process.stdout:
        if part in line:
            return
    raise AssertionError(f"no line with {part!r}: {process.stderr.read()}")
