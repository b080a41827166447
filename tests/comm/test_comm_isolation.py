"""Isolation: channels, runs and what came too late never meet (I1 to I4)."""

import pytest
import torch
from hypothesis import strategies as st
from runners import law, simulate

from vitrail.comm.backends.simulated import SimulatedTransport, World
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.outcome import guarded
from vitrail.errors import CommAborted, CommTimeout, ProtocolError
from vitrail.testing.comm.judging import opened
from vitrail.testing.comm.payloads import PAYLOADS, bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules


@law(simulate, odd=st.integers(0, 2), schedule=schedules())
def test_i2_a_message_of_another_run_is_refused(run, odd, schedule):
    """Three ranks on one table, of which one believes to be in another run."""
    world, errors = World(3, schedule, 100.0), {}

    def rank_main(rank):
        communicator = RankCommunicator(SimulatedTransport(world, rank), f"run {rank == odd}", timeout=100.0)
        target = torch.full((2,), -1.0)
        try:
            guarded(communicator, lambda c: c.broadcast(target if c.rank else torch.ones(2), 0))
        except (ProtocolError, CommAborted) as error:
            errors[rank] = error
        assert target.tolist() == [-1.0, -1.0]

    world._take_turns(rank_main)
    assert set(errors) == {0, 1, 2}
    assert "run True" in world.hub.abort.reason and "run False" in world.hub.abort.reason


@law(simulate, payload=PAYLOADS, kind=st.sampled_from(["broadcast", "gather", "channel"]), late=st.integers(101, 250))
def test_i4_what_comes_after_the_timeout_is_never_seen(run, payload, kind, late):
    """The message arrives while the program still runs; the tensors stay as they were."""
    schedule = DrawnSchedule(delays=bytes([0, 0, late, late] if kind == "channel" else [late] * 2))

    def program(communicator):
        source = payload.make(0)
        held, work = [payload.blank()], None
        try:
            if kind == "broadcast":
                work = communicator.broadcast(source if communicator.rank == 0 else held[0], 0, async_op=True)
            elif kind == "gather":
                held = [payload.blank(), payload.blank()]
                mine = {communicator.rank: source}
                work = communicator.all_gather_into(dict(enumerate(held)), mine, {0: 0, 1: 1}, async_op=True)
            else:
                channel = opened(communicator, payload)
                work = channel.publish(0, source if communicator.rank == 0 else None)
            work.wait(0.1)
            communicator.barrier()
        except (CommTimeout, CommAborted) as error:
            communicator._transport.spend(1.0)
            assert [bits(tensor) for tensor in held] == [bits(payload.blank())] * len(held)
            if kind == "channel":
                with pytest.raises(CommAborted):
                    channel.fetch(0)
            assert work.is_completed()
            with pytest.raises((CommTimeout, CommAborted)):
                work.wait()
            assert [bits(tensor) for tensor in held] == [bits(payload.blank())] * len(held)
            return type(error)
        return None

    outcome = run(2, program, schedule)
    ends = [type(error) for error in outcome.errors.values()] + list(outcome.results.values())
    assert CommAborted in ends or CommTimeout in ends
    assert outcome.abort is not None
    assert "waited 0.1 s" in outcome.abort.reason
