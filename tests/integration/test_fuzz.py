"""Hostile and absurd files and command lines: past findings, a few that are drawn, and the judge itself."""

import gc

import pytest
from hypothesis import given, settings

from fuzz import answers
from fuzzing import command_lines, configs, workers
from fuzzing.cases import Case
from fuzzing.corpus import CORPUS
from vitrail.backbones import adapters as families

PRINTING_ENDS = (  # the command, since what a plugin raises itself is refused
    "import rich.console; rich.console.Console.print = lambda *_, **__: (_ for _ in ()).throw(SystemExit({}))"
)
EXAMPLES = settings.default.max_examples
PLUGIN = ["sample", "a fox", "--dry-run", "--plugin", "bad:Plugin"]


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Children of this process find imported and loaded what all of them need."""
    before = families.load_pipeline
    workers.warm_up()
    yield
    families.load_pipeline = before
    gc.unfreeze()


@pytest.mark.thorough
def test_every_past_finding_is_answered():
    found = {name: answers(case, part, workers.run(case)) for name, (case, part) in CORPUS.items()}
    assert {name: told for name, told in found.items() if told} == {}


@settings(max_examples=EXAMPLES)
@given(configs.cases())
def test_every_file_is_answered(case):
    outcome = workers.run(case)
    assert not outcome.finding, (outcome.finding, outcome.trace, outcome.err)


@pytest.mark.thorough
@settings(max_examples=EXAMPLES)
@given(command_lines.cases())
def test_every_command_line_is_answered(case):
    outcome = workers.run(case)
    assert not outcome.finding, (outcome.finding, outcome.trace, outcome.err)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise Strange('bug')", "traceback: bad.Strange: bug"),
        ("while True: pass", "hang"),
        ("self.kept = bytearray(2**31)", "memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "crash"),
        ("import os; os._exit(0)", "crash"),
        (PRINTING_ENDS.format(7), "exit code 7"),
        (PRINTING_ENDS.format(2), "exit code 2 without a word"),
    ],
)
def test_what_is_bad_is_found(body, expected):
    text = f"class Strange(BaseException): pass\nclass Plugin:\n    def __init__(self):\n        {body}\n"
    outcome = workers.run(Case(PLUGIN, {"bad.py": text.encode()}), limit_s=1, mebibytes=64)
    assert outcome.finding.startswith(expected), outcome
