"""What gloo ranks refuse below and beside the laws: foreign headers and foreign runs (S6, I2)."""

import pytest
import torch
from pool import values

from vitrail.comm.message_header import SIZE
from vitrail.comm.transport import Part
from vitrail.errors import CommAborted, CommTimeout, ProtocolError


def foreign(communicator, odd):
    """Past the communicator, which would never do this: a source whose header is another one."""
    transport = communicator._transport
    transport.open("x")
    header = bytes([communicator.rank == odd]) * SIZE
    mine = {0: torch.ones(8, dtype=torch.uint8)} if communicator.rank == odd else {}
    posting = transport.post("x", 0, header, [Part(odd, 8)], mine, "sources")
    transport.wait(lambda: posting.conflict() is not None or posting.is_complete(), transport.clock() + 5.0)
    communicator.barrier()
    return posting.is_complete(), posting.conflict()


def test_s6_a_foreign_version_in_a_channel_is_never_complete(pool):
    told = (False, (1, bytes([1]) * SIZE))
    assert values(pool.run(3, foreign, 1)) == [told, (True, None), told]


def receive(communicator):
    target = torch.full((4,), -1.0)
    communicator.broadcast(torch.ones(4) if communicator.rank == 0 else target, 0)
    return "data"


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("odd", [0, 1])
def test_i2_ranks_of_different_runs_refuse_each_other(pool, world, odd):
    answers = pool.run(world, receive, run_ids=[f"run {rank == odd}" for rank in range(world)], timeout=30.0)
    errors = [answer.error for answer in answers]
    assert {type(error) for error in errors} <= {ProtocolError, CommAborted}
    assert any(isinstance(error, ProtocolError) for error in errors)
    assert not any(isinstance(error, CommTimeout) for error in errors)
    if world == 3:
        assert {error.culprit for error in errors if isinstance(error, CommAborted)} <= {odd}
