"""Mistakes that a communication library could make, planted one at a time: the tests must find each.

Those of communication are found through the door that others have, the laws of ``vitrail.testing.comm``.
``python tests/comm/mutants.py`` plants all of them and prints which test found which; with a name, that one.
"""

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
SIMULATED, THREADS = "tests/comm/test_laws.py::TestSimulated", "tests/comm/test_laws.py::TestInProcess"
RANKS = "tests/integration/test_ranks.py"
FLOW, FLOWING = "tests/comm/test_dataflow_exchange.py", "tests/integration/test_dataflow.py"
CELLWISE = "tests/unit/core/engine/test_cellwise.py"
FOUND = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def rank_here():
    """The rank whose thread this is."""
    import threading

    return int(threading.current_thread().name.partition("rank-")[2] or 0)


def no_snapshot():
    """A publish or a collective keeps the caller's memory."""
    import torch

    from vitrail.comm import channel, communicator, payload

    def to_bytes(tensors, checksums):
        if checksums or len(tensors) != 1:
            return original(tensors, checksums)
        return payload._dense(tensors[0]).view(torch.uint8)

    original = payload.to_bytes
    channel.to_bytes = communicator.to_bytes = to_bytes


def off_by_one_version():
    """``fetch`` gives the version before."""
    from vitrail.comm.channel import VersionedChannel

    original = VersionedChannel.fetch

    def fetch(self, version, **options):
        before = version - 1
        return original(self, before if before in self._slots and version <= self._last else version, **options)

    VersionedChannel.fetch = fetch


def latest_instead_of_exact():
    """``fetch`` gives the newest version that is here."""
    from vitrail.comm.channel import VersionedChannel

    original = VersionedChannel.fetch

    def fetch(self, version, **options):
        allowed = self._last - self.max_staleness <= version <= self._last and version >= 0
        return original(self, max(version, self.latest()) if allowed else version, **options)

    VersionedChannel.fetch = fetch


def one_slot_less():
    """``max_staleness + 1`` slots: the version under way takes the place of one that may be read."""
    from vitrail.comm.channel import VersionedChannel

    VersionedChannel.slots = property(lambda self: self.max_staleness + 1)


def handed_out_early():
    """A part is handed out before it has come: on CPU what a missing wait for a stream is on CUDA."""
    import torch

    from vitrail.comm.backends.rendezvous import HubPosting

    original = HubPosting.part

    def part(self, index):
        source = self._parts[index].src
        if self._has_reached(source):
            return original(self, index)
        return torch.zeros(self._parts[index].nbytes, dtype=torch.uint8)

    HubPosting.part, HubPosting.is_complete = part, lambda self: True


def arrival_order_sum():
    """Views are added up in the order in which a rank has them: its own first."""
    from vitrail.plugins.fusion import averages as fusion

    original = fusion.weighted_mean

    def weighted_mean(views, outputs, latents, weight):
        begin = rank_here() % len(views)
        order = [*range(begin, len(views)), *range(begin)]
        return original([views[i] for i in order], outputs[order], latents, weight)

    fusion.weighted_mean = weighted_mean


def rank_dependent_seed():
    """Every rank draws numbers of its own."""
    from vitrail.core.schedule.streams import Streams

    original = Streams.generator
    Streams.generator = lambda self, name, *index: original(self, f"{name}{rank_here() or ''}", *index)


def skipped_collective():
    """A rank that has its answers at hand from an earlier call leaves the exchange out."""
    from vitrail.core.engine.forwards import Forwards

    original, calls = Forwards.share, {}

    def share(self, step, batches, timings):
        calls[id(self)] = calls.get(id(self), 0) + 1
        if self.exchange.rank == 1 and calls[id(self)] == 2:
            return [self.forward(step, rows, timings) for rows in batches]
        return original(self, step, batches, timings)

    Forwards.share = share


def timeout_without_abort():
    """A rank that waited too long raises, and keeps it to itself."""
    from vitrail.comm.work import PostedWork
    from vitrail.errors import CommTimeout

    original = PostedWork._fail

    def fail(self, error, culprit=None):
        original(self, error, None if isinstance(error, CommTimeout) else culprit)

    PostedWork._fail = fail


def no_header_check():
    """Whatever the peers call is taken for the same."""
    from vitrail.comm.backends.rendezvous import HubPosting

    HubPosting.conflict = lambda self: None


def global_jitter():
    """Windows move by numbers from torch's global generator."""
    import torch

    from vitrail.core.schedule.streams import Streams

    original = Streams.uniform

    def uniform(self, shape, name, *index):
        return torch.rand(shape) if name == "jitter" else original(self, shape, name, *index)

    Streams.uniform = uniform


def told_on_rank_0_only():
    """An exception reaches the other ranks if it was rank 0's."""
    from vitrail.comm import outcome
    from vitrail.comm.backends import in_process, simulated

    original = outcome.guarded

    def guarded(communicator, program):
        if communicator.rank:
            communicator.abort = lambda reason: None
        return original(communicator, program)

    in_process.guarded = simulated.guarded = guarded


def forgotten_needs():
    """A unit does not wait for the units that it overlaps."""
    from vitrail.comm.dataflow_exchange import DataflowExchange

    original = DataflowExchange.needed
    DataflowExchange.needed = lambda self, unit: [each for each in original(self, unit) if each.step < unit.step - 1]


def barrier_after_all():
    """A relay is complete once all ranks have posted it."""
    from vitrail.comm.communicator import RankCommunicator

    original = RankCommunicator.begin

    def begin(self, *args, witness="all", **options):
        return original(self, *args, **options)

    RankCommunicator.begin = begin


def unbounded_lead():
    """A rank gets ready for messages of any later step."""
    from vitrail.comm import dataflow_exchange

    dataflow_exchange.AHEAD = 99


def stop_at_once():
    """A rank stops as soon as it hears that rank 0 wants to."""
    from vitrail.comm.dataflow_exchange import VOTE, DataflowExchange

    original = DataflowExchange.stops_before

    def stops_before(self, step):
        heard = [work for unit, (work, _) in self._works.items() if unit.unit == VOTE and self.has(unit)]
        wants = any(bool(self.take(unit)) for unit in list(self._works) if unit.unit == VOTE and self.has(unit))
        if heard and wants:
            self._cut(step)
        return original(self, step)

    DataflowExchange.stops_before = stops_before


def timeout_of_the_whole_wait():
    """A rank waits for what it needs at once, whoever else has to come first."""
    from vitrail.comm.dataflow_exchange import DataflowExchange

    DataflowExchange.root = lambda self, late: max(late, key=lambda unit: self._place[unit])


def neighbour_blamed():
    """A timeout names the owner of what a rank needs, which may itself be waiting."""
    from vitrail.comm.dataflow_exchange import DataflowExchange
    from vitrail.comm.work import PostedWork

    original = PostedWork._give_up

    def give_up(self, limit, blames_source=False):
        self._transport.behind, kept = (lambda: (self._transport.rank, "")), self._transport.behind
        try:
            original(self, limit, blames_source)
        finally:
            self._transport.behind = kept

    PostedWork._give_up = give_up
    DataflowExchange.root = lambda self, late: list(late)[-1]


def late_views_fused():
    """Cells do a step before all views that write them are predicted."""
    from vitrail.core.engine.cellwise import CellwiseCanvas

    original = CellwiseCanvas.ready
    CellwiseCanvas.ready = lambda self, step, late: original(self, step, late[1:])


def history_of_the_last_part():
    """What a scheduler remembers is that of the last part of a step, in all cells."""
    from vitrail.core.engine import cellwise

    original = cellwise.CellwiseCanvas.advance

    def advance(self, *arguments):
        made = original(self, *arguments)
        _, self._kept = cellwise.taken_apart(self.stepper.state(), self.latents.shape)
        return made

    cellwise.CellwiseCanvas.advance = advance


def scheduler_of_the_last_step():
    """A part of a step begins with the scheduler as the part before left it."""
    from vitrail.core.engine.cellwise import CellwiseCanvas

    def load(self, step, kept):
        self._loaded = step

    CellwiseCanvas._load = load


def fusion_that_is_not_cellwise():
    """A fusion says that it is cellwise and adds the mean of the canvas."""
    from vitrail.plugins.fusion import averages

    original = averages.weighted_mean

    def weighted_mean(views, outputs, latents, std):
        fused = original(views, outputs, latents, std)
        return fused + 1e-3 * fused.mean()

    averages.weighted_mean = weighted_mean


@frozen
class Mutant:
    """A mistake and where it should be found.

    Attributes:
        tests: Arguments of pytest.
    """

    name: str
    plant: object
    tests: tuple


def mutant(name, plant, *tests):
    return Mutant(name, plant, tests)


MUTANTS = (
    mutant("no snapshot copy", no_snapshot, SIMULATED),
    mutant("off-by-one version", off_by_one_version, SIMULATED),
    mutant("latest instead of exact", latest_instead_of_exact, SIMULATED),
    mutant("slot count s + 1", one_slot_less, SIMULATED),
    mutant("missing stream wait (on CPU: a part before it has come)", handed_out_early, SIMULATED),
    mutant("arrival-order sum", arrival_order_sum, RANKS, "-k", "number_of_ranks"),
    mutant("rank-dependent seed", rank_dependent_seed, RANKS, "-k", "number_of_ranks"),
    mutant("skip the collective on a cache hit", skipped_collective, RANKS, "-k", "number_of_ranks"),
    mutant("timeout without abort", timeout_without_abort, THREADS),
    mutant("header check removed", no_header_check, SIMULATED),
    mutant("jitter from the global generator", global_jitter, RANKS, "-k", "every_method"),
    mutant("error reported on rank 0 only", told_on_rank_0_only, THREADS),
    mutant("dataflow: needs forgotten", forgotten_needs, FLOW, "-k", "values_of_one"),
    mutant("dataflow: a relay that waits for its readers", barrier_after_all, FLOW, "-k", "nothing_else"),
    mutant("dataflow: no bound on the lead", unbounded_lead, FLOW, "-k", "values_of_one or nothing_else"),
    mutant("dataflow: a stop heeded at once", stop_at_once, FLOW, "-k", "stop_before"),
    mutant("dataflow: timeout of the whole wait", timeout_of_the_whole_wait, FLOW, "-k", "taken_for_late"),
    mutant("dataflow: the waiting neighbour blamed", neighbour_blamed, FLOW, "-k", "names_the_rank"),
    mutant("dataflow: late views fused", late_views_fused, FLOWING, "-k", "one_two_and_three"),
    mutant("dataflow: history of the last part", history_of_the_last_part, CELLWISE, "-k", "MultistepScheduler"),
    mutant("dataflow: scheduler of the last step", scheduler_of_the_last_step, CELLWISE, "-k", "in_parts"),
    mutant(
        "dataflow: a fusion that is not cellwise",
        fusion_that_is_not_cellwise,
        "tests/contracts/test_strategies.py",
        "-k",
        "fusion and average",
    ),
)


@functools.cache
def run(number, is_planted=True):
    """(the tests that failed, seconds) with a mutant planted, or without."""
    environment = {**os.environ, "VITRAIL_PROFILE": "fast", "OMP_NUM_THREADS": "1"}
    chosen = [sys.executable, __file__, "plant" if is_planted else "none", str(number)]
    begin = time.monotonic()
    done = subprocess.run(chosen, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    found = FOUND.findall(done.stdout)
    if done.returncode not in (0, 1) or bool(found) != bool(done.returncode):
        raise RuntimeError(f"the tests could not be run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found, time.monotonic() - begin


def planted(number, is_planted):
    """In a process of its own: plant, then run the tests up to the first that fails."""
    import pytest

    if is_planted:
        MUTANTS[number].plant()
    stop = ["-x", "--timeout", "120"] if is_planted else []
    return pytest.main(["--tb=no", *stop, *MUTANTS[number].tests])


def table(numbers):
    """Plant some mutants and print who found them."""
    killed = 0
    for number in numbers:
        found, seconds = run(number)
        killed += bool(found)
        print(f"{MUTANTS[number].name:<56} {seconds:6.1f} s  {found[0] if found else 'SURVIVED'}", flush=True)
    print(f"{killed} of {len(numbers)} killed")
    return killed == len(numbers)


def main(arguments):
    if arguments[:1] in (["plant"], ["none"]):
        return int(planted(int(arguments[1]), arguments[0] == "plant"))
    wanted = [i for i, each in enumerate(MUTANTS) if not arguments or each.name.startswith(arguments[0])]
    return 0 if table(wanted) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
