"""A backend from outside: the sound one keeps every law, and of its mistakes each is found and can be read."""

import contextlib
import re
import sys
import threading
from pathlib import Path

import pytest
from attrs import frozen

from vitrail.comm import odd_one_out
from vitrail.testing.comm import LAWS, CommLaws, LawBroken, OnBackend
from vitrail.testing.comm.__main__ import main

EXAMPLES = str(Path(__file__).parents[2] / "examples/vitrail-mailboxes")
sys.path.insert(0, EXAMPLES)
import mailboxes  # noqa: E402
from mailboxes import LetterTransport, Mailboxes, Office  # noqa: E402

sys.path.remove(EXAMPLES)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Small programs are for readers."""
    monkeypatch.setattr("vitrail.testing.comm.judging.SHRINK_S", 0.5)


class TestMailboxes(CommLaws):
    backend = Mailboxes
    examples = 2


@frozen(kw_only=True)
class ArrivalOrder(Mailboxes):
    """Gives the results in the order in which the ranks ended."""

    def run(self, world_size, program, run_id="run"):
        ended = []

        def noted(communicator):
            result = program(communicator)
            communicator.close()
            ended.append(result)

        Mailboxes.run(self, world_size, noted, run_id)
        return ended


class Deaf(LetterTransport):
    """Keeps an abort to itself."""

    own = None

    def abort(self, abort):
        self.own = abort

    def aborted(self):
        return self.own


class OneBuffer(LetterTransport):
    """Has one buffer for all versions of a channel."""

    def sort(self):
        super().sort()
        newest = {}
        for (domain, _), tray in sorted(self.trays.items()):
            for index, data in tray.parts.items():
                newest[domain, index, len(data)] = data
        for (domain, _), tray in self.trays.items():
            for index, data in tray.parts.items():
                tray.parts[index] = newest[domain, index, len(data)]


class Flipping(LetterTransport):
    """Changes a bit of every message, whatever the order of events."""

    def post(self, domain, seq, header, parts, mine, witness):
        flipped = {index: data ^ 1 for index, data in mine.items()}
        return super().post(domain, seq, header, parts, flipped, witness)


class Tiring(LetterTransport):
    """Changes a bit of every message from the third one on."""

    posts = 0

    def post(self, domain, seq, header, parts, mine, witness):
        self.posts += 1
        flipped = {index: data ^ (self.posts > 2) for index, data in mine.items()}
        return super().post(domain, seq, header, parts, flipped, witness)


class Lax(LetterTransport):
    """Waits for the sources alone, at barriers too."""

    def post(self, domain, seq, header, parts, mine, witness):
        return super().post(domain, seq, header, parts, mine, "sources")


class Blind(LetterTransport):
    """Compares no headers."""

    def post(self, *share):
        posting = super().post(*share)
        posting.conflict = lambda: None
        return posting


class Eager(LetterTransport):
    """Says that all have posted when they have not."""

    def post(self, *share):
        posting = super().post(*share)
        posting.is_taken = lambda: True
        return posting


class SelfBlame(LetterTransport):
    """A timeout names who waited."""

    def behind(self):
        return self.rank, ""


class Blocking(LetterTransport):
    """A post waits for the others."""

    def post(self, *share):
        posting = super().post(*share)
        self.wait(lambda: posting.is_taken() or posting.conflict(), self.clock() + 1.0)
        return posting


class Merged(LetterTransport):
    """Matches the operations of all domains by one count."""

    count = 0

    def post(self, domain, seq, header, parts, mine, witness):
        self.count += 1
        return super().post("all", self.count, header, parts, mine, witness)


class LastWord(Office):
    """The last abort counts."""

    def revoke(self, abort):
        self.verdict = abort
        self.send(None)


MISTAKES = {
    Deaf: "i3-after-an-abort",
    OneBuffer: "s1-integrity",
    Lax: "o4-barrier",
    Blind: "s6-mismatch",
    Eager: "l3-slots",
    SelfBlame: "w2-timeout",
    Blocking: "l3-slots",
    Merged: "o4-splits",
    LastWord: "f4-first-abort",
}


@contextlib.contextmanager
def planted(mistake):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailboxes, "Office" if issubclass(mistake, Office) else "LetterTransport", mistake)
        yield OnBackend(Mailboxes, timeout=1.0)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found_and_told_rank_by_rank(mistake):
    with planted(mistake) as bench, pytest.raises(LawBroken) as broken:
        LAWS[MISTAKES[mistake]].check(bench, examples=30)
    text = str(broken.value)
    assert text.startswith(f"Mailboxes breaks law {MISTAKES[mistake]}: ")
    assert "\nrank 0\n   1. " in text and "\nrank 1\n   1. " in text
    assert f"python -m vitrail.testing.comm mailboxes:Mailboxes --law {MISTAKES[mistake]} --replay " in text


def test_what_failed_is_run_again_from_the_last_line_of_the_message(capsys):
    with planted(Flipping) as bench, pytest.raises(LawBroken) as broken:
        LAWS["s1-integrity"].check(bench, examples=30)
    command = str(broken.value).splitlines()[-1].split()[3:]
    with planted(Flipping):
        assert main(command) == 1
    again = capsys.readouterr().out
    assert "(1 were tried on the way)" in again
    begin = str(broken.value).partition("rank 0\n")[2].splitlines()[0]  # what follows depends on the threads' turns
    assert f"rank 0\n{begin}\n" in again
    assert main(command) == 1  # without the mistake: there is nothing to see any more
    assert "does not fail any more" in capsys.readouterr().out


def steps_of(broken):
    """Number of calls of all ranks in the program of a message."""
    story = str(broken.value).partition("the smallest program found")[2].partition("to run it again")[0]
    return len(re.findall(r"^ +\d+\. ", story, re.M))


def test_a_failing_program_is_shrunk(monkeypatch):
    """To fewer calls than the first one found; the limit is a number of examples, whatever the machine's speed."""
    monkeypatch.setattr("vitrail.testing.comm.judging.SHRINK_S", 3600.0)
    found = {}
    for tries in (0, 200):
        monkeypatch.setattr("vitrail.testing.comm.judging.SHRINK_TRIES", tries)
        with planted(Tiring) as bench, pytest.raises(LawBroken) as broken:
            LAWS["s1-integrity"].check(bench, examples=30, seed=1)
        found[tries] = steps_of(broken)
    assert 0 < found[200] < found[0]


def test_results_in_order_of_arrival_are_found_and_shown():
    with pytest.raises(LawBroken, match=r"`run` returned \[.*\n  where the program returned, by rank, \[\[0, "):
        LAWS["r1-run"].check(OnBackend(ArrivalOrder), examples=30)


def test_a_run_that_never_ends_is_told_with_what_each_rank_was_at(monkeypatch):
    """It is not tried again, since every try would hang."""
    monkeypatch.setattr("vitrail.testing.comm.bench.PATIENCE_S", 0.2)

    @frozen(kw_only=True)
    class Endless(Mailboxes):
        def run(self, world_size, program, run_id="run"):
            results = Mailboxes.run(self, world_size, program, run_id)
            threading.Event().wait(3.0 if world_size > 1 else 0.0)
            return results

    with pytest.raises(
        LawBroken, match=r"(?s)had not ended 0\.\d+ s after it began.*rank 1\n   1\. waits at a barrier"
    ):
        LAWS["o4-barrier"].check(OnBackend(Endless, timeout=0.3), examples=30)


class Reports:
    """What pytest says of each test."""

    def __init__(self):
        self.ended = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.skipped:
            self.ended[report.nodeid.rpartition("::")[2]] = report


def test_the_plugin_of_pytest_tries_every_law_without_a_file(tmp_path, capsys):
    reports = Reports()
    words = ["-q", "-p", "no:cacheprovider", "-p", "vitrail.testing.comm.plugin", "--vitrail-comm"]
    with planted(Eager):
        code = pytest.main([*words, "mailboxes:Mailboxes", "--vitrail-comm-examples", "1", str(tmp_path)], [reports])
    assert code == 1
    assert set(reports.ended) == {f"Mailboxes[{law}]" for law in LAWS}
    assert reports.ended["Mailboxes[f1-killed]"].skipped
    assert str(reports.ended["Mailboxes[l3-slots]"].longrepr).startswith("Mailboxes breaks law l3-slots: ")
    assert reports.ended["Mailboxes[s1-integrity]"].passed
    assert "Traceback" not in capsys.readouterr().out


def test_the_odd_one_out_is_whom_fewest_agree_with():
    assert odd_one_out({0: b"a", 1: b"a"}, 0) is None
    assert odd_one_out({0: b"a", 1: b"b"}, 0) == (1, b"b")
    assert odd_one_out({0: b"a", 1: b"b", 2: b"b"}, 0) == (0, b"b")
    assert odd_one_out({0: b"a", 1: b"b", 2: b"b"}, 2) == (0, b"a")
