"""Order: what matches what, and what is there before what (O1 to O5)."""

import torch
from runners import clean, simulate

from vitrail.testing.comm.judging import opened
from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.schedules import DrawnSchedule

SMALL = Payload(torch.int32, (2,))


def rest(communicator, seconds):
    """Let time pass, where it is virtual."""
    spend = getattr(communicator._transport, "spend", None)
    if spend is not None:
        spend(seconds)


class Overtaking(DrawnSchedule):
    """The first version travels long."""

    def delay(self, source, destination, nbytes):
        self.messages += nbytes > 0
        return {0: 0.0, 1: 0.2}.get(self.messages, 0.01) if nbytes else 0.0


def test_o1_versions_that_overtake_each_other_become_visible_in_order():
    """Version 1 is here before version 0: ``latest`` waits for both, ``fetch`` for neither."""

    def program(communicator):
        channel = opened(communicator, SMALL, bound=2)
        for version in range(2):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)
        if communicator.rank == 0:
            return None
        seen = []
        for pause in (0.05, 0.3):
            rest(communicator, pause)
            seen.append((channel.latest(), bits(channel.fetch(1)), communicator._transport.clock()))
        return seen

    (first, got, when), (second, _, _) = clean(simulate(2, program, Overtaking()))[1]
    assert (first, second, got) == (-1, 1, bits(SMALL.make(1)))
    assert when < 0.2
