"""Programs of any operations that every rank runs, and what each operation must give."""

from attrs import define, field, frozen
from hypothesis import strategies as st
from payloads import PAYLOADS, Payload, bits, spoil

from vitrail.errors import StaleVersion

PLAIN = Payload()


@frozen
class Op:
    """One call; ``at`` is a communicator or a channel or a work, by its number."""

    kind: str
    at: int = 0
    src: int = 0
    payload: Payload = PLAIN
    number: int = 0  # a version, a staleness bound, or 1 for a call that returns at once
    owners: tuple = ()


@define
class Resolver:
    """Makes sense of small numbers: whatever they are, the program is one that no rank may refuse."""

    world: int
    payloads: list
    ops: list = field(factory=list)
    communicators: int = 1
    channels: list = field(factory=list)  # [source, bound, last version, payload]
    works: int = 0

    def add(self, kind, a, b):
        getattr(self, kind)(a, b)

    def payload(self, b):
        return self.payloads[b % len(self.payloads)]

    def barrier(self, a, b):
        self.ops.append(Op("barrier", a % self.communicators))

    def split(self, a, b):
        self.ops.append(Op("split", a % self.communicators))
        self.communicators += 1

    def broadcast(self, a, b):
        later = b % 2
        self.ops.append(Op("broadcast", a % self.communicators, b % self.world, self.payload(a), later))
        self.works += later

    def gather(self, a, b):
        owners = tuple((a >> shift) % self.world for shift in range(b % 5))
        self.ops.append(Op("gather", a % self.communicators, 0, self.payload(b), b & 1, owners))
        self.works += b & 1

    def tell(self, a, b):
        self.ops.append(Op("tell", a % self.communicators, b % self.world, number=a))

    def channel(self, a, b):
        self.channels.append([b % self.world, a % 4, -1, self.payload(b)])
        source, bound, _, payload = self.channels[-1]
        self.ops.append(Op("channel", a % self.communicators, source, payload, bound))

    def publish(self, a, b):
        if not self.channels:
            self.channel(b, a)
        index = a % len(self.channels)
        self.channels[index][2] += 1
        source, _, last, payload = self.channels[index]
        self.ops.append(Op("publish", index, source, payload, last))

    def fetch(self, a, b):
        index = self._published(a, b)
        _, bound, last, payload = self.channels[index]
        self.ops.append(Op("fetch", index, 0, payload, max(0, last - b % (bound + 1))))

    def stale(self, a, b):
        index = self._published(a, b)
        _, bound, last, payload = self.channels[index]
        if last > bound:
            self.ops.append(Op("stale", index, 0, payload, b % (last - bound)))

    def within(self, a, b):
        index = self._published(a, b)
        _, bound, last, payload = self.channels[index]
        self.ops.append(Op("within", index, bound, payload, last))

    def wait(self, a, b):
        if self.works:
            self.ops.append(Op("wait", a % self.works, number=b % 3))

    def _published(self, a, b):
        """A channel of which something was published."""
        if not any(last >= 0 for _, _, last, _ in self.channels):
            self.publish(a, b)
        known = [index for index, channel in enumerate(self.channels) if channel[2] >= 0]
        return known[a % len(known)]


KINDS = ("barrier", "broadcast", "gather", "publish", "fetch", "within", "publish", "fetch", "wait", "channel")
KINDS += ("split", "tell", "stale")


def resolve(world, raw, payloads):
    """A program from small numbers."""
    resolver = Resolver(world, payloads)
    for kind, a, b in raw:
        resolver.add(KINDS[kind], a, b)
    return tuple(resolver.ops)


def programs(world, max_size=10):
    """Programs for so many ranks."""
    small = st.integers(0, 255)
    raw = st.lists(st.tuples(st.integers(0, len(KINDS) - 1), small, small), max_size=max_size)
    return st.builds(resolve, st.just(world), raw, st.lists(PAYLOADS, min_size=1, max_size=3))


def sized_programs(max_world=4, max_size=10):
    """(number of ranks, program)."""
    return st.integers(1, max_world).flatmap(lambda world: st.tuples(st.just(world), programs(world, max_size)))


def expected(op, index):
    """What a call at a place of the program must give: the same on every rank."""
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
    """One rank at a program; every source is overwritten as soon as its call returns."""

    def __init__(self, communicator):
        self.communicators, self.channels = [communicator], []
        self.works = []  # (index, work, tensors)
        self.rank, self.seen = communicator.rank, {}

    def play(self, ops):
        """Run it, close, and give what was seen by index, with the works that nobody waited for."""
        for index, op in enumerate(ops):
            result = getattr(self, op.kind)(index, op)
            if result is not None:
                self.seen[index] = result
        leaked = self.communicators[0].close()
        for index, _, tensors in self.works:  # also of those that nobody waited for
            self.seen[index] = [bits(tensor) for tensor in tensors]
        return self.seen, leaked

    def play_until(self, ops, end):
        """The first operations of a program."""
        for index, op in enumerate(ops[:end]):
            getattr(self, op.kind)(index, op)

    def assert_whole(self, ops):
        """What was begun is here as a whole, or not at all."""
        for index, _, tensors in self.works:
            op, new = ops[index], expected(ops[index], index)
            old = [bits(op.payload.blank())] * len(tensors)
            assert [bits(tensor) for tensor in tensors] in (old, new)

    def barrier(self, index, op):
        self.communicators[op.at].barrier()

    def split(self, index, op):
        self.communicators.append(self.communicators[op.at].split(f"split/{index}"))

    def broadcast(self, index, op):
        tensor = op.payload.make(index) if self.rank == op.src else op.payload.blank()
        work = self.communicators[op.at].broadcast(tensor, op.src, async_op=bool(op.number))
        kept = tensor.clone() if self.rank == op.src else tensor
        if self.rank == op.src:
            spoil(tensor)
        return self._begun(index, work, [kept])

    def gather(self, index, op):
        owner = dict(enumerate(op.owners))
        out = {key: op.payload.blank() for key in owner}
        mine = {key: op.payload.make(index, key) for key in owner if owner[key] == self.rank}
        work = self.communicators[op.at].all_gather_into(out, mine, owner, async_op=bool(op.number))
        for tensor in mine.values():
            spoil(tensor)
        return self._begun(index, work, list(out.values()))

    def _begun(self, index, work, tensors):
        if work is None:
            return [bits(tensor) for tensor in tensors]
        self.works.append((index, work, tensors))
        return None

    def wait(self, index, op):
        begun, work, tensors = self.works[op.at]
        if op.number == 0 and not work.is_completed():
            return
        work.wait()
        assert work.is_completed() and work.exception() is None
        self.seen[begun] = [bits(tensor) for tensor in tensors]

    def tell(self, index, op):
        value = {"number": op.number, "text": ["é", None]} if self.rank == op.src else None
        return self.communicators[op.at].broadcast_object(value, op.src)

    def channel(self, index, op):
        options = {"shape": op.payload.shape, "dtype": op.payload.dtype, "max_staleness": op.number}
        self.channels.append(self.communicators[op.at].channel(f"channel/{index}", src=op.src, **options))

    def publish(self, index, op):
        value = op.payload.make(op.at, op.number) if self.rank == op.src else None
        self.channels[op.at].publish(op.number, value)
        if value is not None:
            spoil(value)

    def fetch(self, index, op):
        got = self.channels[op.at].fetch(op.number)
        told = bits(got)
        spoil(got)
        return told

    def stale(self, index, op):
        try:
            self.channels[op.at].fetch(op.number)
        except StaleVersion:
            return "StaleVersion"

    def within(self, index, op):
        before = self.channels[op.at].latest()
        version, got = self.channels[op.at].fetch_within(op.number)
        assert max(0, op.number - op.src, before) <= version <= op.number  # src holds the bound here
        assert bits(got) == bits(op.payload.make(op.at, version))
        assert self.channels[op.at].latest() >= before


def outcome_of(ops):
    """What every rank must have seen."""
    works = [index for index, op in enumerate(ops) if op.kind in ("broadcast", "gather") and op.number]
    seen = {i: expected(op, i) for i, op in enumerate(ops) if expected(op, i) is not None}
    return seen, works
