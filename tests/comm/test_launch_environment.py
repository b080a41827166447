"""What launchers say of a process, and clocks of several hosts."""

import threading
import time

import pytest

from vitrail.comm.environment import HOSTED, RankEnvironment, from_environment
from vitrail.comm.process_group_clock import clock_offset
from vitrail.errors import CommError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "gpu[07-09,12],login"}


def test_torchrun():
    assert from_environment(TORCHRUN) == RankEnvironment(1, 4, 0, "host", 1234)
    agent = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert from_environment(agent) == RankEnvironment(1, 4, 0, "host", 1234, store_is_hosted=True, attempt=2)


@pytest.mark.parametrize(("rank", "hosted", "hosts"), [("0", "", True), ("0", "1", False), ("1", "", False)])
def test_rank_0_keeps_the_store_unless_the_launcher_does(rank, hosted, hosts):
    assert from_environment(TORCHRUN | {"RANK": rank, HOSTED: hosted}).hosts_store == hosts


def test_slurm():
    assert from_environment(SLURM) == RankEnvironment(3, 4, 1, "gpu07", 29500)
    own = SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert from_environment(own) == RankEnvironment(3, 4, 1, "10.0.0.1", 5)
    assert from_environment(SLURM | {"SLURM_JOB_NODELIST": "a1,b2"}).master_addr == "a1"


@pytest.mark.parametrize("known", [{}, {"MASTER_ADDR": "x"}, {"SLURM_PROCID": "0"}, SLURM | {"SLURM_NTASKS": "1"}])
def test_alone(known):
    assert from_environment(known) is None


def test_one_rank_is_a_run():
    assert from_environment(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"RANK": "0"}, "torchrun's .RANK=0., but WORLD_SIZE and MASTER_ADDR and MASTER_PORT is not set"),
        (TORCHRUN | {"MASTER_PORT": ""}, "but MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "one"}, "RANK must be a whole number, got 'one'"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4"),
        (SLURM | {"SLURM_JOB_NODELIST": ""}, "set MASTER_ADDR to the host of rank 0"),
        (SLURM | {"SLURM_JOB_NODELIST": "r[1-2]n[1-9]"}, "set MASTER_ADDR"),
    ],
)
def test_half_a_set_or_nonsense_is_refused(known, told):
    with pytest.raises(CommError, match=told):
        from_environment(known)


@pytest.mark.parametrize("places", ["aaa", "aba", "abc"])
def test_clocks_of_several_hosts_are_aligned(places):
    """Here all clocks are one, so what is measured is the error."""
    from torch.distributed import HashStore

    store, found = HashStore(), {}

    def ask(rank):
        found[rank] = clock_offset(store, rank, 3, where=places[rank])

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 3 and time.monotonic() - begin < 30
    for rank, offset in found.items():
        assert (offset != 0.0) == (places[rank] != "a")
        assert abs(offset) < 0.1
