"""What ranks compare: headers, votes over them, counts and checksums (S6)."""

import pytest
import torch
from hypothesis import strategies as st
from runners import law, simulate, threads

from vitrail.comm import solo
from vitrail.comm.backends.rendezvous import Hub
from vitrail.comm.message_header import SIZE, pack_header, read_header
from vitrail.comm.transport import Part
from vitrail.comm.work import PostedWork
from vitrail.errors import ProtocolError
from vitrail.testing.comm.judging import opened
from vitrail.testing.comm.payloads import Payload

SMALL = Payload(torch.int32, (2,))


@law(simulate, data=st.data(), world=st.integers(2, 5))
def test_the_vote_over_headers(run, data, world):
    """With every header known: the rank whose header fewest have; in a tie not the one that asks."""
    headers = data.draw(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=world, max_size=world))
    hub = Hub(world, lambda: 0.0)
    postings = [hub.post(rank, "main", 0, header, [], {}, "all") for rank, header in enumerate(headers)]
    count = {header: headers.count(header) for header in headers}
    for rank, posting in enumerate(postings):
        conflict = posting.conflict()
        if len(count) == 1:
            assert conflict is None
            continue
        culprit, header = conflict
        assert header != headers[rank]
        others = [other for other in range(world) if headers[other] != headers[rank]]
        fewest = min(count[headers[other]] for other in others)
        if count[headers[rank]] < fewest:
            assert culprit == rank
        else:
            assert culprit == next(other for other in others if count[headers[other]] == fewest)
            assert header == headers[culprit]


@law(posted=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_whoever_has_posted_least_is_behind(run, posted):
    """Over all domains together; nobody else is, if nobody has posted less."""
    hub = Hub(len(posted), lambda: 0.0)
    for rank, count in enumerate(posted):
        for seq in range(count):
            hub.post(rank, f"domain {seq % 2}", seq // 2, b"", [Part(rank, 0)], {}, "sources")
    for rank in range(len(posted)):
        behind, _ = hub.behind(rank)
        assert posted[behind] == min(posted)
        assert behind == rank or posted[rank] > min(posted)


def test_a_checksum_finds_bytes_that_changed_on_the_way():
    for run in (simulate, threads):

        def program(communicator):
            channel = opened(communicator, SMALL)
            channel.publish(0, SMALL.make(0) if communicator.rank == 0 else None)
            communicator.barrier()
            if communicator.rank == 0:
                for slot in communicator._transport_slots():
                    for part in slot.parts.values():
                        part[0] ^= 1
            communicator.barrier()
            return channel.fetch(0)

        def on_table(communicator, program=program):
            transport = communicator._transport
            hub = transport._hub if hasattr(transport, "_hub") else transport._world.hub
            communicator._transport_slots = lambda: list(hub.slots.values())
            return program(communicator)

        outcome = run(2, on_table, checksums=True)
        found = [error for error in outcome.errors.values() if isinstance(error, ProtocolError)]  # of who looks first
        assert found and set(outcome.errors) == {0, 1}
        assert "checksum" in str(outcome.errors[1])


@pytest.mark.parametrize("length", [0, 10, 1000])
def test_a_header_tells_of_every_difference(length):
    long = "x" * length
    header = pack_header("r", 3, "call()", long)
    assert len(header) == SIZE
    assert read_header(header).startswith("call(), operation 3 of run r")
    others = [
        ("s", 3, "call()", long),
        ("r", 4, "call()", long),
        ("r", 3, "call2()", long),
        ("r", 3, "call()", long + "y"),
    ]
    assert len({header, *(pack_header(*other) for other in others)}) == 5


class LatePosting:
    """Its last header and data come while the work looks at it."""

    came = False

    def is_complete(self):
        self.came = True
        return True

    def conflict(self):
        return (1, pack_header("r", 0, "other()")) if self.came else None

    def release(self):
        pass


def test_what_completes_an_operation_is_compared_before_the_data_are_taken():
    taken = []
    work = PostedWork(solo()._transport, solo().trace, LatePosting(), "call()", taken.append, 1.0)
    assert work.is_completed()
    with pytest.raises(ProtocolError, match="ranks disagree"):
        work.wait()
    assert taken == []
