"""Random programs of communication that every rank runs, and the expected result of each operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen
from hypothesis import strategies as st
from torch import Tensor

from vitrail.comm.protocol import Communicator
from vitrail.errors import StaleVersion
from vitrail.testing.comm.payloads import PAYLOADS, Payload, bits
from vitrail.testing.comm.telling import RecordedChannel, RecordedCommunicator, RecordedWork

PLAIN = Payload()
REST_S = 1e-3  # virtual seconds of a program's unit of rest


@frozen
class Op:
    """One call of a program.

    Attributes:
        kind: Name of the operation, see ``KINDS``.
        at: Number of the communicator, channel or work that it uses.
        src: The rank that sends; of "within" the channel's bound.
        payload: Gives dtype and shape.
        number: A version, a staleness bound, a duration in ``REST_S``, or 1 for an asynchronous call.
        owners: Of a gather, the rank of each key.
    """

    kind: str
    at: int = 0
    src: int = 0
    payload: Payload = PLAIN
    number: int = 0
    owners: tuple[int, ...] = ()


@define
class _Opened:
    """A channel of a program, with its last published version."""

    src: int
    bound: int
    payload: Payload
    last: int = -1


@define
class Resolver:
    """Builds a valid program from small integers, taken modulo the numbers of existing ranks, channels and works."""

    world: int
    payloads: Sequence[Payload]
    ops: list[Op] = field(factory=list)
    communicators: int = 1
    channels: list[_Opened] = field(factory=list)
    works: int = 0

    def add(self, kind: str, a: int, b: int) -> None:
        """Append an operation, with others that it needs.

        Args:
            kind: Name of the operation, one of ``KINDS``.
            a: First integer that selects its arguments.
            b: Second integer that selects its arguments.
        """
        getattr(self, f"_{kind}")(a, b)

    def _payload(self, b: int) -> Payload:
        return self.payloads[b % len(self.payloads)]

    def _barrier(self, a: int, b: int) -> None:
        self.ops.append(Op("barrier", a % self.communicators))

    def _rest(self, a: int, b: int) -> None:
        self.ops.append(Op("rest", a % self.world, number=b))

    def _split(self, a: int, b: int) -> None:
        self.ops.append(Op("split", a % self.communicators))
        self.communicators += 1

    def _broadcast(self, a: int, b: int) -> None:
        later = b % 2
        self.ops.append(Op("broadcast", a % self.communicators, b % self.world, self._payload(a), later))
        self.works += later

    def _gather(self, a: int, b: int) -> None:
        owners = tuple((a >> shift) % self.world for shift in range(b % 5))
        self.ops.append(Op("gather", a % self.communicators, 0, self._payload(b), b & 1, owners))
        self.works += b & 1

    def _tell(self, a: int, b: int) -> None:
        self.ops.append(Op("tell", a % self.communicators, b % self.world, number=a))

    def _channel(self, a: int, b: int) -> None:
        opened = _Opened(b % self.world, a % 4, self._payload(b))
        self.channels.append(opened)
        self.ops.append(Op("channel", a % self.communicators, opened.src, opened.payload, opened.bound))

    def _publish(self, a: int, b: int) -> None:
        if not self.channels:
            self._channel(b, a)
        index = a % len(self.channels)
        opened = self.channels[index]
        opened.last += 1
        self.ops.append(Op("publish", index, opened.src, opened.payload, opened.last))

    def _fetch(self, a: int, b: int) -> None:
        index = self._published(a, b)
        opened = self.channels[index]
        self.ops.append(Op("fetch", index, 0, opened.payload, max(0, opened.last - b % (opened.bound + 1))))

    def _stale(self, a: int, b: int) -> None:
        index = self._published(a, b)
        opened = self.channels[index]
        if opened.last > opened.bound:
            self.ops.append(Op("stale", index, 0, opened.payload, b % (opened.last - opened.bound)))

    def _within(self, a: int, b: int) -> None:
        index = self._published(a, b)
        opened = self.channels[index]
        self.ops.append(Op("within", index, opened.bound, opened.payload, opened.last))

    def _wait(self, a: int, b: int) -> None:
        if self.works:
            self.ops.append(Op("wait", a % self.works, number=b % 3))

    def _published(self, a: int, b: int) -> int:
        """Return the index of a channel with a published version, publishing one if there is none."""
        if not any(opened.last >= 0 for opened in self.channels):
            self._publish(a, b)
        known = [index for index, opened in enumerate(self.channels) if opened.last >= 0]
        return known[a % len(known)]


OFTEN = ("barrier", "broadcast", "gather", "publish", "fetch", "within", "publish", "fetch", "wait", "channel")
KINDS = (*OFTEN, "split", "tell", "stale", "rest")


def resolve(world: int, raw: Sequence[tuple[int, int, int]], payloads: Sequence[Payload]) -> tuple[Op, ...]:
    """Build a program from small integers.

    Args:
        world: Number of ranks.
        raw: Index of the kind and two integers of each operation.
        payloads: Payloads to choose from.
    """
    resolver = Resolver(world, payloads)
    for kind, a, b in raw:
        resolver.add(KINDS[kind], a, b)
    return tuple(resolver.ops)


def programs(world: int, max_size: int = 10) -> st.SearchStrategy[tuple[Op, ...]]:
    """Return a Hypothesis strategy of programs of at most ``max_size`` draws for ``world`` ranks."""
    small = st.integers(0, 255)
    raw = st.lists(st.tuples(st.integers(0, len(KINDS) - 1), small, small), max_size=max_size)
    return st.builds(resolve, st.just(world), raw, st.lists(PAYLOADS, min_size=1, max_size=3))


def sized_programs(max_world: int = 4, max_size: int = 10) -> st.SearchStrategy[tuple[int, tuple[Op, ...]]]:
    """Return a Hypothesis strategy of pairs of a number of ranks, at most ``max_world``, and a program for them."""
    return st.integers(1, max_world).flatmap(lambda world: st.tuples(st.just(world), programs(world, max_size)))


def expected(op: Op, index: int) -> Any:
    """Return the expected result of the operation at an index, equal on every rank; None if it has none."""
    if op.kind == "broadcast":
        return [bits(op.payload.make(index))]
    if op.kind == "gather":
        return [bits(op.payload.make(index, key)) for key in range(len(op.owners))]
    if op.kind == "tell":
        return {"number": op.number, "text": ["é", None]}
    if op.kind == "fetch":
        return bits(op.payload.make(op.at, op.number))
    return {"stale": "StaleVersion"}.get(op.kind)


class Player:
    """Runs a program on one rank, and overwrites every sent tensor as soon as its call returns."""

    def __init__(self, communicator: Communicator | RecordedCommunicator):
        recorded = (
            communicator if isinstance(communicator, RecordedCommunicator) else RecordedCommunicator(communicator)
        )
        self.communicators: list[RecordedCommunicator] = [recorded]
        self.channels: list[RecordedChannel] = []
        self.works: list[tuple[int, RecordedWork, list[Tensor]]] = []  # (index, work, tensors)
        self.rank = recorded.rank
        self.seen: dict[int, Any] = {}

    def play(self, ops: Sequence[Op]) -> tuple[dict[int, Any], tuple[str, ...]]:
        """Run a program and close the communicator.

        Returns:
            Results by the operation's index, and the works that ``close`` reports as never waited for.
        """
        for index, op in enumerate(ops):
            result = self._do(index, op)
            if result is not None:
                self.seen[index] = result
        leaked = self.communicators[0].close()
        for index, _, tensors in self.works:  # also of those without a wait
            self.seen[index] = [bits(tensor) for tensor in tensors]
        return self.seen, leaked

    def play_until(self, ops: Sequence[Op], end: int) -> None:
        """Run the first ``end`` operations of a program."""
        for index, op in enumerate(ops[:end]):
            self._do(index, op)

    def assert_whole(self, ops: Sequence[Op]) -> None:
        """Assert that every asynchronous operation delivered its tensors completely or not at all.

        Raises:
            AssertionError: If some are new and some are old.
        """
        for index, _, tensors in self.works:
            op, new = ops[index], expected(ops[index], index)
            old = [bits(op.payload.blank())] * len(tensors)
            assert [bits(tensor) for tensor in tensors] in (old, new), f"a part of operation {index + 1} is here"

    def _do(self, index: int, op: Op) -> Any:
        return getattr(self, f"_{op.kind}")(index, op)

    def _barrier(self, index: int, op: Op) -> None:
        self.communicators[op.at].barrier()

    def _rest(self, index: int, op: Op) -> None:
        if self.rank == op.at:
            self.communicators[0].rest(op.number * REST_S)

    def _split(self, index: int, op: Op) -> None:
        self.communicators.append(self.communicators[op.at].split(f"split/{index}"))

    def _broadcast(self, index: int, op: Op) -> Any:
        tensor = op.payload.make(index) if self.rank == op.src else op.payload.blank()
        owner = self.communicators[op.at]
        work = owner.broadcast(tensor, op.src, async_op=bool(op.number))
        kept = tensor.clone() if self.rank == op.src else tensor
        if self.rank == op.src:
            owner.spoil(tensor, "what it broadcast")
        return self._begun(index, work, [kept])

    def _gather(self, index: int, op: Op) -> Any:
        owner = dict(enumerate(op.owners))
        out = {key: op.payload.blank() for key in owner}
        mine: Mapping[int, Tensor] = {k: op.payload.make(index, k) for k in owner if owner[k] == self.rank}
        communicator = self.communicators[op.at]
        work = communicator.all_gather_into(out, mine, owner, async_op=bool(op.number))
        for key, tensor in mine.items():
            communicator.spoil(tensor, f"what it gave as {key}")
        return self._begun(index, work, list(out.values()))

    def _begun(self, index: int, work: RecordedWork | None, tensors: list[Tensor]) -> Any:
        if work is None:
            return [bits(tensor) for tensor in tensors]
        self.works.append((index, work, tensors))
        return None

    def _wait(self, index: int, op: Op) -> None:
        begun, work, tensors = self.works[op.at]
        if op.number == 0 and not work.is_completed():
            return
        work.wait()
        assert work.is_completed() and work.exception() is None, "a work that was waited for is not complete"
        self.seen[begun] = [bits(tensor) for tensor in tensors]

    def _tell(self, index: int, op: Op) -> Any:
        value = {"number": op.number, "text": ["é", None]} if self.rank == op.src else None
        return self.communicators[op.at].broadcast_object(value, op.src)

    def _channel(self, index: int, op: Op) -> None:
        options: dict[str, Any] = {"shape": op.payload.shape, "dtype": op.payload.dtype, "max_staleness": op.number}
        self.channels.append(self.communicators[op.at].channel(f"channel/{index}", src=op.src, **options))

    def _publish(self, index: int, op: Op) -> None:
        value = op.payload.make(op.at, op.number) if self.rank == op.src else None
        self.channels[op.at].publish(op.number, value)
        self.communicators[0].spoil(value, "what it published")

    def _fetch(self, index: int, op: Op) -> Any:
        got = self.channels[op.at].fetch(op.number)
        fetched = bits(got)
        self.communicators[0].spoil(got, "what it fetched")
        return fetched

    def _stale(self, index: int, op: Op) -> str | None:
        try:
            self.channels[op.at].fetch(op.number)
        except StaleVersion:
            return "StaleVersion"
        return None

    def _within(self, index: int, op: Op) -> None:
        before = self.channels[op.at].latest()
        version, got = self.channels[op.at].fetch_within(op.number)
        newest = f"version {version} was given at step {op.number}, after version {before}"
        assert max(0, op.number - op.src, before) <= version <= op.number, newest  # src holds the bound here
        assert bits(got) == bits(op.payload.make(op.at, version)), f"what is given as version {version} is another"
        assert self.channels[op.at].latest() >= before, "the latest version went back"


def outcome_of(ops: Sequence[Op]) -> tuple[dict[int, Any], list[int]]:
    """Return the expected results by the operation's index, and the indices of asynchronous operations."""
    works = [index for index, op in enumerate(ops) if op.kind in ("broadcast", "gather") and op.number]
    seen = {i: expected(op, i) for i, op in enumerate(ops) if expected(op, i) is not None}
    return seen, works
