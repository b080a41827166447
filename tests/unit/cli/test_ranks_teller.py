"""One fault, one message: who tells of it; what ranks are started with."""

import sys
from pathlib import Path

import pytest

import vitrail
from vitrail.cli.ranks import RankOptions, RankPlacement, start_ranks, teller
from vitrail.comm.backends.process_group_store import LOST
from vitrail.comm.environment import HOSTED
from vitrail.errors import CommAborted, CommError, CommTimeout, ConfigError

TORCHRUN = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def known(error):
    error.is_known = True
    return error


@pytest.fixture
def rank(monkeypatch):
    def be(number, hosted=""):
        for name, value in (TORCHRUN | {"RANK": str(number)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv(HOSTED, raising=False)
        if hosted:
            monkeypatch.setenv(HOSTED, hosted)

    return be


@pytest.mark.parametrize("error", [CommAborted(1, "a bad day"), known(CommTimeout("behind"))], ids=["abort", "timeout"])
def test_what_all_ranks_know_is_told_by_the_launcher_or_by_rank_0(rank, error):
    rank(0, hosted="1")
    assert teller(error) == "launcher"
    told = []
    for number in range(3):
        rank(number)
        told.append(teller(error))
    assert told == ["me", "rank", "rank"]


def test_if_rank_0_is_gone_the_next_one_tells(rank):
    told = []
    for number in (1, 2):
        rank(number)
        told.append(teller(CommAborted(0, LOST)))
    assert told == ["me", "rank"]


@pytest.mark.parametrize("error", [ConfigError("no"), CommError("nobody answers"), CommTimeout("no store to tell")])
def test_what_only_this_rank_knows_it_tells_itself(rank, error):
    for number in range(3):
        rank(number, hosted="1")
        assert teller(error) == "me"


def test_alone_there_is_nobody_else(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert teller(CommAborted(1, "a thread's bad day")) == "me"


def test_ranks_find_a_package_that_lies_in_the_current_folder(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "vitrail.comm.backends.launch.launch", lambda *args, variables, **options: seen.update(variables)
    )
    monkeypatch.setattr(sys, "argv", ["vitrail", "sample", "a fox"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(Path(vitrail.__file__).parents[1])
    start_ranks(RankPlacement("start", 2, RankOptions()), [])
    assert (Path(seen["PYTHONPATH"]) / "vitrail/__init__.py").exists()
