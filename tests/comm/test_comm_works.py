"""Works: completed in any order, waited for in any order, or never (C1 to C3)."""

import gc

import torch
from hypothesis import strategies as st
from runners import clean, law
from test_comm_order import rest

from vitrail.comm import InProcess
from vitrail.testing.comm.payloads import PAYLOADS, Payload, bits, spoil
from vitrail.testing.comm.schedules import schedules

SMALL = Payload(torch.int32, (2,))
BOUNDS = st.integers(0, 3)


@law(world=st.integers(1, 3), payload=PAYLOADS, order=st.permutations(range(5)), schedule=schedules())
def test_c1_c2_works_may_be_waited_for_in_any_order_and_again(run, world, payload, order, schedule):
    def program(communicator):
        tensors = [payload.make(i) if communicator.rank == i % world else payload.blank() for i in range(5)]
        works = [communicator.broadcast(tensor, i % world, async_op=True) for i, tensor in enumerate(tensors)]
        for index in order:
            works[index].wait()
            works[index].wait(0.0)
            assert works[index].exception() is None
            assert bits(tensors[index]) == bits(payload.make(index))
        for index, tensor in enumerate(tensors):  # waiting again does not deliver again
            spoil(tensor)
            spoiled = bits(tensor)
            works[index].wait()
            assert bits(tensor) == spoiled
        return communicator.close()

    assert clean(run(world, program, schedule)) == [()] * world


@law(world=st.integers(1, 3), dropped=st.sets(st.integers(0, 4)), pause=st.booleans(), schedule=schedules())
def test_c2_a_work_that_nobody_waits_for_delivers_all_the_same_and_is_told(run, world, dropped, pause, schedule):
    """In whatever state it is when the run ends: complete or under way."""

    def program(communicator):
        rank = communicator.rank
        tensors = [SMALL.make(i) if rank == i % world else SMALL.blank() for i in range(5)]
        for index, tensor in enumerate(tensors):
            target = torch.zeros(index) if index in dropped else torch.zeros(0)
            work = communicator.broadcast(tensor, index % world, async_op=True)
            communicator.broadcast(target, 0)
            if index not in dropped:
                work.wait()
            del work
            gc.collect(0)
        if pause:
            rest(communicator, 1.0)
        leaked = communicator.close()
        return [bits(tensor) for tensor in tensors], leaked

    for got, leaked in clean(run(world, program, schedule)):
        assert got == [bits(SMALL.make(index)) for index in range(5)]
        assert leaked == tuple(f"broadcast(int32 2, src={index % world})" for index in sorted(dropped))


@law(world=st.integers(1, 3), schedule=schedules())
def test_c2_a_finaliser_may_wait(run, world, schedule):
    done = []

    class Holder:
        def __init__(self, work, tensor):
            self.work, self.tensor = work, tensor

        def __del__(self):
            self.work.wait()
            done.append(bits(self.tensor))

    def program(communicator):
        tensor = SMALL.make(0) if communicator.rank == 0 else SMALL.blank()
        holder = Holder(communicator.broadcast(tensor, 0, async_op=True), tensor)
        del holder
        return communicator.close()

    assert clean(run(world, program, schedule)) == [()] * world
    assert done == [bits(SMALL.make(0))] * world


@law(world=st.integers(1, 4), payload=PAYLOADS, pauses=st.lists(st.integers(0, 300), max_size=4), schedule=schedules())
def test_c3_a_work_that_says_it_is_complete_can_be_read_at_once(run, world, payload, pauses, schedule):
    def program(communicator):
        found = 0
        owner = {key: key for key in range(world)}
        for pause in pauses:
            out = {key: payload.blank() for key in owner}
            mine = {communicator.rank: payload.make(communicator.rank)}
            work = communicator.all_gather_into(out, mine, owner, async_op=True)
            rest(communicator, pause * 1e-3)
            if work.is_completed():
                found += 1
                assert [bits(out[key]) for key in owner] == [bits(payload.make(key)) for key in owner]
                spans = len(communicator.trace.spans)
                work.wait(0.0)
                assert len(communicator.trace.spans) == spans
            elif world > 1 and not any(bits(tensor) == bits(payload.make(key)) for key, tensor in out.items()):
                assert all(bits(tensor) == bits(payload.blank()) for tensor in out.values())
            work.wait()
            assert [bits(out[key]) for key in owner] == [bits(payload.make(key)) for key in owner]
        return found

    found = clean(run(world, program, schedule))
    assert world > 1 or found == [len(pauses)]


def test_a_run_of_threads_leaves_no_threads_behind():
    import threading

    before = threading.active_count()
    InProcess().run(4, lambda communicator: communicator.barrier())
    assert threading.active_count() == before
