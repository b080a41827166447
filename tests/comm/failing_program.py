"""A program of ten steps, each with a barrier, a gather and a channel, in which one rank fails at a step."""

import functools
import multiprocessing
import os
import signal
import time

from attrs import frozen

STEPS = 10
SLOW_S = 600.0  # nobody waits so long


@frozen
class Failure:
    """What befalls which rank at which step."""

    kind: str
    rank: int
    step: int


def steps(communicator, failure):
    """The program."""
    import torch

    rank, size = communicator.rank, communicator.world_size
    channel = communicator.channel("guidance", src=0, shape=(4,), dtype=torch.float32, max_staleness=1)
    owner = {key: key % size for key in range(4)}
    out = {key: torch.zeros(8) for key in owner}
    for step in range(STEPS):
        communicator.note(f"step {step}")
        if (rank, step) == (failure.rank, failure.step):
            fail(failure)
        channel.publish(step, torch.full((4,), float(step)) if rank == 0 else None)
        communicator.all_gather_into(out, {k: torch.full((8,), float(step)) for k in owner if owner[k] == rank}, owner)
        assert float(channel.fetch(max(0, step - 1))[0]) == max(0, step - 1)
        communicator.barrier()
    return step


def fail(failure):
    if failure.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif failure.kind == "leave":
        os._exit(3)
    elif failure.kind == "raise":
        raise ValueError(f"injected at step {failure.step}")
    elif failure.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif failure.kind == "slow":
        time.sleep(SLOW_S)


def run_gloo(world, failure, timeout, method="forkserver"):
    """Run it; gives the error, if there is one, once every process has ended."""
    from vitrail.comm import Gloo
    from vitrail.comm.backends.process_group_spawn import run_spawned

    try:
        run_spawned(Gloo(timeout=timeout), world, functools.partial(steps, failure=failure), "run", method)
    except Exception as error:
        return error
    finally:
        assert not multiprocessing.active_children(), "a process was left behind"
    return None
