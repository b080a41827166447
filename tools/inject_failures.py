"""Let ranks fail and see how runs end: every run must end soon and name the rank where it began.

    python tools/inject_failures.py --runs 200

A program of ten steps, each with a barrier, a gather and a channel, runs on two or three ranks; at a step drawn by
chance one rank is killed, leaves, raises, is stopped or is slow. Seconds count from that moment (wall time).
"""

import argparse
import functools
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from attrs import field, frozen

STEPS = 10
TIMEOUT_S = 1.0  # of one wait; what is stopped or slow is noticed after so long
SLOW_S = 12.0
LIMIT_S = {"kill": 2.0, "leave": 2.0, "raise": 2.0, "crash": 2.0, "stop": TIMEOUT_S + 2.0, "slow": TIMEOUT_S + 2.0}
KINDS = {
    "gloo": ("kill", "leave", "raise", "stop", "slow"),
    "in-process": ("raise", "slow"),
    "simulated": ("crash", "raise", "slow"),
}
SHARES = {"gloo": 0.6, "in-process": 0.1, "simulated": 0.3}


@frozen
class Failure:
    """What befalls which rank at which step; ``mark`` is a file that tells when it did."""

    kind: str
    rank: int
    step: int
    mark: str = ""
    seconds: float = SLOW_S


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
    Path(failure.mark).write_text(repr(time.monotonic()))
    if failure.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif failure.kind == "leave":
        os._exit(3)
    elif failure.kind == "raise":
        raise ValueError(f"injected at step {failure.step}")
    elif failure.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif failure.kind == "slow":
        time.sleep(failure.seconds)


@frozen
class Found:
    """How a run ended: the error, whom it names, seconds since the failure."""

    error: BaseException | None
    named: bool
    seconds: float


def run_gloo(world, failure, method="forkserver"):
    from vitrail.comm import Gloo
    from vitrail.comm.process_group_spawn import run_spawned

    backend, program = Gloo(timeout=TIMEOUT_S), functools.partial(steps, failure=failure)
    found = judged(failure, lambda: run_spawned(backend, world, program, "run", method))
    assert not multiprocessing.active_children(), "a process was left behind"
    return found


def run_in_process(world, failure):
    from vitrail.comm import InProcess

    program = functools.partial(steps, failure=failure)
    return judged(failure, lambda: InProcess(timeout=TIMEOUT_S).run(world, program))


def run_simulated(world, failure):
    """Here the failure strikes at a call of the communicator, in virtual time."""
    from vitrail.comm.schedule import Fault, SeededSchedule
    from vitrail.comm.world import World

    kinds = {"crash": Fault("crash"), "raise": Fault("raise"), "slow": Fault("stall", SLOW_S)}

    class Once(SeededSchedule):
        def fault(self, rank, point):
            if rank == failure.rank and point == 3 * failure.step + 2:
                Path(failure.mark).write_text(repr(time.monotonic()))
                return kinds[failure.kind]
            return None

    program = functools.partial(steps, failure=Failure("none", -1, -1))
    outcome = World(world, Once(failure.step), TIMEOUT_S).run(program, "run")
    named = outcome.abort is not None and outcome.abort.culprit == failure.rank
    return Found(next(iter(outcome.errors.values()), None), named, since(failure))


def judged(failure, run):
    """Run, and see whether the error names the rank: as culprit, in words, or by being its own."""
    try:
        run()
    except Exception as error:
        seconds, text = since(failure), f"rank {failure.rank}"
        own = isinstance(error, ValueError) and "injected" in str(error)
        named = getattr(error, "culprit", None) == failure.rank or own or f"{text} is behind" in str(error)
        return Found(error, named, seconds)
    return Found(None, False, since(failure))


def since(failure):
    return time.monotonic() - float(Path(failure.mark).read_text())


RUNS = {"gloo": run_gloo, "in-process": run_in_process, "simulated": run_simulated}


@frozen
class Row:
    """All runs of a backend and a kind."""

    found: list = field(factory=list)

    def cells(self, limit):
        seconds = [each.seconds for each in self.found]
        ended = sum(each.error is not None for each in self.found)
        named, soon = sum(each.named for each in self.found), sum(each <= limit for each in seconds)
        return [len(self.found), ended, named, soon, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]


def draw(chance, runs, folder):
    """(backend, world size, failure) of every run, kinds in turn."""
    for backend, share in SHARES.items():
        for number in range(round(runs * share)):
            world = chance.choice([2, 3])
            kind = KINDS[backend][number % len(KINDS[backend])]
            mark = str(Path(folder) / f"{backend}-{number}")
            seconds = SLOW_S if backend == "gloo" else 2 * TIMEOUT_S  # a thread cannot be ended
            yield backend, world, Failure(kind, chance.randrange(world), chance.randrange(STEPS), mark, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch.distributed", "vitrail.comm.process_group", "vitrail.comm.process_group_spawn"]
    )
    rows, begin = defaultdict(Row), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for backend, world, failure in draw(random.Random(options.seed), options.runs, folder):
            found = RUNS[backend](world, failure)
            rows[backend, failure.kind].found.append(found)
            if found.error is None or not found.named or found.seconds > LIMIT_S[failure.kind]:
                print(f"unlike the others: {backend}, {world} ranks, {failure}: {found}", flush=True)
    print("| backend | failure | runs | ended with an error | rank named | within the limit | median s | worst s |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for (backend, kind), row in rows.items():
        print("|", " | ".join(map(str, [backend, kind, *row.cells(LIMIT_S[kind])])), "|")
    print(f"{sum(len(row.found) for row in rows.values())} runs in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
