"""What launchers say of a process, and clocks of several hosts."""

import socket
import threading
import time

import pytest
from attrs import evolve

from vitrail.comm.backends.key_store import StoreServer, listener_at
from vitrail.comm.backends.meeting import meet
from vitrail.comm.backends.process_group_clock import clock_offset
from vitrail.comm.environment import HOSTED, SECRET, RankEnvironment, from_environment
from vitrail.errors import CommError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "gpu[07-09,12],login"}


def test_torchrun():
    assert known(TORCHRUN) == RankEnvironment(1, 4, 0, "host", 1234)
    agent = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    told = RankEnvironment(1, 4, 0, "host", 1234, store_is_hosted=True, attempt=2, has_torch_store=True)
    assert known(agent) == told


def known(variables):
    """Without what tells runs apart."""
    return evolve(from_environment(variables), secret="", name="a run")


@pytest.mark.parametrize(("rank", "hosted", "hosts"), [("0", "", True), ("0", "1", False), ("1", "", False)])
def test_rank_0_keeps_the_store_unless_the_launcher_does(rank, hosted, hosts):
    assert from_environment(TORCHRUN | {"RANK": rank, HOSTED: hosted}).hosts_store == hosts


def test_torchruns_store_is_read_by_anybody_so_rank_0_keeps_one_besides():
    assert from_environment(TORCHRUN | {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}).hosts_store


def test_a_store_of_torchrun_at_which_nobody_listens_is_not_waited_for():
    with socket.socket() as taken:  # a port that nobody gets meanwhile
        taken.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        agents = {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        environment = from_environment(TORCHRUN | place | agents | {"RANK": "1"})
        with pytest.raises(CommError, match=r"nobody listens at .*, torchrun's store: the process that started"):
            meet(environment, timeout=3600.0)


def test_slurm():
    assert known(SLURM | {"MASTER_PORT": "5"}) == RankEnvironment(3, 4, 1, "gpu07", 5)
    own = SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert known(own) == RankEnvironment(3, 4, 1, "10.0.0.1", 5)
    assert from_environment(SLURM | {"SLURM_JOB_NODELIST": "a1,b2"}).master_addr == "a1"


def test_under_slurm_job_and_step_choose_port_and_secret():
    steps = [{"SLURM_JOB_ID": job, "SLURM_STEP_ID": step} for job in ("7", "8") for step in ("0", "1")]
    found = [from_environment(SLURM | step) for step in steps]
    assert len({each.master_port for each in found}) == len({each.secret for each in found}) == 4
    assert all(1024 < each.master_port < 32768 for each in found)  # 32768 on: systems give these away
    assert found[1].name == "SLURM job 7, step 1"
    assert from_environment(SLURM | steps[0] | {"SLURM_PROCID": "0"}).secret == found[0].secret


def test_a_secret_is_given_or_derived_from_what_only_the_ranks_know():
    run = {"TORCHELASTIC_RUN_ID": "one"}
    secrets = [from_environment(TORCHRUN | more).secret for more in (run, {"TORCHELASTIC_RUN_ID": "two"}, {})]
    assert len(set(secrets)) == 3 and all(len(each) == 64 for each in secrets)
    for variables in (TORCHRUN | run, SLURM):
        assert from_environment(variables | {SECRET: "own"}).secret == "own"
    assert "one" not in repr(from_environment(TORCHRUN | {SECRET: "one"})).split("name=")[0]


@pytest.mark.parametrize(
    ("variables", "is_local"),
    [
        (TORCHRUN, False),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, False),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, True),
        (TORCHRUN | {"MASTER_ADDR": "127.0.0.1"}, True),
        (TORCHRUN | {"MASTER_ADDR": "localhost"}, True),
        (SLURM | {"SLURM_NNODES": "2"}, False),
        (SLURM | {"SLURM_NNODES": "1"}, True),
    ],
)
def test_ranks_of_one_host_need_not_be_reached_from_others(variables, is_local):
    assert from_environment(variables).is_local == is_local


@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "x"}, {"SLURM_PROCID": "0"}, SLURM | {"SLURM_NTASKS": "1"}])
def test_alone(given):
    assert from_environment(given) is None


def test_one_rank_is_a_run():
    assert from_environment(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "0"}, "torchrun's .RANK=0., but WORLD_SIZE and MASTER_ADDR and MASTER_PORT is not set"),
        (TORCHRUN | {"MASTER_PORT": ""}, "but MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "one"}, "RANK must be a whole number, got 'one'"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4"),
        (SLURM | {"SLURM_JOB_NODELIST": ""}, "set MASTER_ADDR to the host of rank 0"),
        (SLURM | {"SLURM_JOB_NODELIST": "r[1-2]n[1-9]"}, "set MASTER_ADDR"),
    ],
)
def test_half_a_set_or_nonsense_is_refused(given, told):
    with pytest.raises(CommError, match=told):
        from_environment(given)


@pytest.mark.parametrize("places", ["aaa", "aba", "abc"])
def test_clocks_of_several_hosts_are_aligned(places):
    """Here all clocks are one, so what is measured is the error."""
    server, found = StoreServer(listener_at(), "secret", "a run"), {}

    def ask(rank):
        found[rank] = clock_offset(server.words, rank, 3, where=places[rank])

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    server.close()
    assert len(found) == 3
    for rank, offset in found.items():
        assert (offset != 0.0) == (places[rank] != "a")
        assert abs(offset) <= time.monotonic() - begin  # half the way of a ping, which cannot take longer than all
