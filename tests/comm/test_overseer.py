"""Whose death ends a run, and whose comes too late to; no process is needed for that."""

import pytest
from attrs import define

from vitrail.comm.backends import launch_overseer
from vitrail.comm.backends.key_store import StoreServer, listener_at
from vitrail.comm.backends.launch_overseer import Overseer
from vitrail.comm.backends.process_group_store import read_abort, write_abort
from vitrail.comm.transport import Abort


@define
class Child:
    """A process as a test wants it: what it is at each look."""

    code: int | None = None
    is_done: bool = False
    pid: int = 0
    listens: bool = True
    ended_by: str = ""

    def poll(self):
        return self.code

    def let_go(self):
        if self.listens:
            self._end("let go", 1)

    def terminate(self):
        if self.listens:
            self._end("SIGTERM", -15)

    def kill(self):
        self._end("SIGKILL", -9)

    def _end(self, how, code):
        self.code, self.ended_by = code, how


@pytest.fixture
def words():
    server = StoreServer(listener_at(), "secret", "a run")
    yield server.words
    server.close()


@pytest.fixture(autouse=True)
def stopped(monkeypatch):
    """Numbers of processes that are stopped."""
    found = set()
    monkeypatch.setattr(launch_overseer, "is_stopped", lambda pid: pid in found)
    monkeypatch.setattr(launch_overseer, "LOOK_S", 0.0)
    monkeypatch.setattr(launch_overseer, "STEP_S", 0.01)
    return found


def test_all_is_well(words):
    overseer = Overseer([Child(0), Child(0)], words)
    assert overseer.watch() is None and overseer.late() == {} and read_abort(words) is None


def test_a_death_ends_the_others_step_by_step(words):
    children = [Child(), Child(-9), Child(listens=False)]
    ending = Overseer(children, words, grace=0.01).watch()
    assert (ending.culprit, ending.from_rank) == (1, False) and "SIGKILL" in ending.reason
    assert [child.ended_by for child in children] == ["let go", "", "SIGKILL"]
    assert read_abort(words).culprit == 1  # the others have been told


def test_a_rank_that_nobody_needs_any_more_may_die(words):
    children = [Child(), Child(-9, is_done=True)]
    overseer = Overseer(children, words)
    looks = iter(range(5))

    def tick():
        children[0].code = 0 if next(looks) == 3 else None
        return True

    assert overseer.watch(tick) is None
    assert overseer.late() == {1: "it was ended by SIGKILL (perhaps because memory ran out)"}
    assert children[0].ended_by == ""


def test_if_the_others_turn_out_to_need_nobody_they_go_on(words):
    """Rank 1 dies at the end of the last exchange, when rank 0 has not said yet that it has everything."""
    children = [Child(), Child(-9)]
    looks = iter(range(20))

    def tick():
        number = next(looks)
        children[1].is_done = number >= 3
        children[0].code = 0 if number >= 10 else None
        return True

    overseer = Overseer(children, words, grace=60.0)
    assert overseer.watch(tick) is None
    assert children[0].ended_by == "" and list(overseer.late()) == [1]


def test_what_lingers_when_all_is_done_is_ended_without_a_word(words, monkeypatch):
    monkeypatch.setattr(launch_overseer, "DONE_S", 0.02)
    children = [Child(0, is_done=True), Child(is_done=True, listens=False)]
    overseer = Overseer(children, words, grace=0.01)
    assert overseer.watch() is None and overseer.late() == {}
    assert children[1].ended_by == "SIGKILL"


def test_a_rank_that_is_stopped_for_too_long_is_named(words, stopped):
    children = [Child(pid=1), Child(pid=2)]
    stopped.add(2)
    ending = Overseer(children, words, grace=0.01, timeout=0.05).watch()
    assert ending.culprit == 1 and ending.reason == "it was stopped, and did not go on within 0.05 s"
    assert children[1].ended_by == "SIGKILL"  # it can hear nothing else


def test_a_rank_that_goes_on_in_time_is_left_alone(words, stopped):
    children = [Child(pid=1), Child(pid=2)]
    looks = iter(range(20))

    def tick():
        number = next(looks)
        (stopped.add if number % 2 else stopped.discard)(2)
        children[0].code = children[1].code = 0 if number == 15 else None
        return True

    assert Overseer(children, words, timeout=0.05).watch(tick) is None


def test_the_first_word_of_a_rank_counts_before_what_is_seen_here(words):
    write_abort(words, Abort(1, "ValueError: a bad day"))
    ending = Overseer([Child(1), Child(1)], words, grace=0.01).watch()
    assert (ending.culprit, ending.reason, ending.from_rank) == (1, "ValueError: a bad day", True)


def test_a_foreign_abort_names_no_rank_that_there_is_not(words):
    write_abort(words, Abort(7, "nobody's"))
    assert Overseer([Child(1), Child(1)], words, grace=0.01).watch().culprit == 0
