"""A channel against its model, a dict {(channel, version): bytes}, call by call, with messages that take their time."""

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from runners import SIMULATED

from vitrail.comm.backends.rendezvous import Hub
from vitrail.comm.channel import VersionedChannel
from vitrail.comm.communicator import RankCommunicator
from vitrail.errors import CommAborted, CommTimeout, ProtocolError, StaleVersion
from vitrail.testing.comm import schedules
from vitrail.testing.comm.payloads import PAYLOADS, bits, spoil

RANKS, TIMEOUT_S = 2, 10.0
WHO, WHICH = st.integers(0, RANKS - 1), st.integers(0, 1)


class HandTransport:
    """A rank's end of a table whose clock the machine turns; a wait turns it to the next arrival."""

    backend, world_size, device = "by hand", RANKS, torch.device("cpu")

    def __init__(self, machine, rank):
        self.machine, self.hub, self.rank = machine, machine.hub, rank

    def clock(self):
        return self.machine.now

    def open(self, domain):
        pass

    def post(self, *share):
        return self.hub.post(self.rank, *share)

    def wait(self, ready, deadline):
        while not ready() and self.hub.abort is None and self.machine.now < deadline:
            later = [moment for moment in self.machine.moments if self.machine.now < moment <= deadline]
            self.machine.now = min(later, default=deadline)

    def abort(self, abort):
        self.hub.revoke(abort)

    def aborted(self):
        return self.hub.abort

    def behind(self):
        return self.hub.behind(self.rank)


class ChannelMachine(RuleBasedStateMachine):
    """Two ranks and two channels, one written by each; every call is made and judged at once."""

    @initialize(payload=PAYLOADS, bounds=st.tuples(st.integers(0, 2), st.integers(0, 2)), checksums=st.booleans())
    def begin(self, payload, bounds, checksums):
        schedules.explored["virtual"] += 1
        self.now, self.moments, self.delay = 0.0, set(), 0.0
        self.payload, self.bounds = payload, bounds
        self.hub = Hub(RANKS, lambda: self.now, self.arrivals)
        owners = [
            RankCommunicator(HandTransport(self, rank), timeout=TIMEOUT_S, checksums=checksums) for rank in (0, 1)
        ]
        like = payload.shape, payload.dtype
        self.channels = [
            [VersionedChannel(owner, f"main/{which}", str(which), which, *like, bounds[which]) for which in (0, 1)]
            for owner in owners
        ]
        self.model = {}  # (channel, version): bytes
        self.arrives = {}  # (channel, version): when the reader has it
        self.last = [[-1, -1], [-1, -1]]  # by rank and channel
        self.latest = [[-1, -1], [-1, -1]]
        self.culprit = None

    def arrivals(self, source, nbytes):
        times = [self.now + (0.0 if rank == source else self.delay) for rank in range(RANKS)]
        self.moments.update(times)
        return times

    def has(self, rank, which, version):
        """Whether a version is complete on a rank, by the model."""
        if (which, version) not in self.model or version > self.last[rank][which]:
            return False
        return rank == which or self.arrives[which, version] <= self.now

    def aborts(self, rank, error, call):
        """A call that breaks a rule, or waits for what does not come: it raises and ends the run."""
        with pytest.raises(CommAborted if self.culprit is not None else error) as raised:
            call()
        assert type(raised.value) is (CommAborted if self.culprit is not None else error)
        if self.culprit is None:
            self.culprit = 1 - rank if error is CommTimeout else rank
        assert self.hub.abort.culprit == self.culprit

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(rank=WHO, which=WHICH, delay=st.sampled_from([0.0, 0.1, 2.0]))
    def publish(self, rank, which, delay):
        channel, version = self.channels[rank][which], self.last[rank][which] + 1
        value = self.payload.make(which, version) if rank == which else None
        old, self.delay = version - self.bounds[which] - 2, delay
        other_has_posted = old < 0 or self.last[1 - rank][which] >= old
        if self.culprit is not None or not other_has_posted:
            self.aborts(rank, CommTimeout, lambda: channel.publish(version, value))
            return
        work = channel.publish(version, value)
        self.last[rank][which] = version
        if rank == which:
            self.model[which, version] = bits(value)
            self.arrives[which, version] = self.now + delay
            assert work.is_completed()
            spoil(value)

    @rule(rank=WHO, which=WHICH, off=st.sampled_from([-2, -1, 1, 5]))
    @precondition(lambda self: self.culprit is None)
    def publish_out_of_turn(self, rank, which, off):
        version = self.last[rank][which] + 1 + off
        value = self.payload.make(0) if rank == which else None
        self.aborts(rank, ProtocolError, lambda: self.channels[rank][which].publish(version, value))

    @rule(rank=WHO, which=WHICH, kind=st.sampled_from(["role", "shape", "type"]))
    @precondition(lambda self: self.culprit is None)
    def publish_something_else(self, rank, which, kind):
        other = {"role": None if rank == which else self.payload.make(0)}
        other["shape"] = torch.zeros((*self.payload.shape, 7), dtype=self.payload.dtype)
        other["type"] = torch.zeros(self.payload.shape, dtype=torch.int16)
        version = self.last[rank][which] + 1
        self.aborts(rank, ProtocolError, lambda: self.channels[rank][which].publish(version, other[kind]))

    @rule(rank=WHO, which=WHICH, age=st.integers(-2, 5))
    def fetch(self, rank, which, age):
        channel, last = self.channels[rank][which], self.last[rank][which]
        version = last - age
        if version < 0:
            with pytest.raises(ValueError, match="there is no version"):
                channel.fetch(version)
        elif self.culprit is not None or version > last:
            self.aborts(rank, ProtocolError, lambda: channel.fetch(version))
        elif age > self.bounds[which]:
            with pytest.raises(StaleVersion):
                channel.fetch(version)
        elif (which, version) not in self.model:  # the source has not come so far
            self.aborts(rank, CommTimeout, lambda: channel.fetch(version))
        else:
            begin, was_here = self.now, self.has(rank, which, version)
            got = channel.fetch(version)
            assert bits(got) == self.model[which, version]
            assert self.now == (begin if was_here else self.arrives[which, version])
            spoil(got)

    @rule(rank=WHO, which=WHICH, ahead=st.integers(-3, 3))
    @precondition(lambda self: self.culprit is None)
    def fetch_within(self, rank, which, ahead):
        channel, last, bound = self.channels[rank][which], self.last[rank][which], self.bounds[which]
        now = last + ahead
        window = range(max(0, now - bound, last - bound), min(now, last) + 1)
        if now < 0:
            with pytest.raises(ValueError, match="there is no version"):
                channel.fetch_within(now)
        elif now < last - bound:
            with pytest.raises(StaleVersion):
                channel.fetch_within(now)
        elif not window:
            self.aborts(rank, ProtocolError, lambda: channel.fetch_within(now))
        else:
            here = [version for version in window if self.has(rank, which, version)]
            if not here and (which, window[0]) not in self.model:
                self.aborts(rank, CommTimeout, lambda: channel.fetch_within(now))
                return
            version, got = channel.fetch_within(now)
            assert version == max(here, default=window[0])
            assert bits(got) == self.model[which, version]

    @rule(rank=WHO, which=WHICH)
    def ask_latest(self, rank, which):
        if self.culprit is not None:
            self.aborts(rank, ProtocolError, self.channels[rank][which].latest)
            return
        version = -1
        while self.has(rank, which, version + 1):
            version += 1
        assert self.channels[rank][which].latest() == version
        assert version >= self.latest[rank][which]
        self.latest[rank][which] = version

    @invariant()
    def the_table_holds_no_more_than_the_slots(self):
        for which, bound in enumerate(getattr(self, "bounds", ())):
            lead = abs(self.last[0][which] - self.last[1][which])
            assert self.culprit is not None or lead <= bound + 2
            assert sum(domain == f"main/{which}" for domain, _ in self.hub.slots) <= 2 * (bound + 2)


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=2 * SIMULATED, stateful_step_count=25)


def test_the_clock_of_the_machine_is_its_own():
    """Its waits end at the deadline, and never in real time."""
    machine = ChannelMachine()
    machine.now, machine.moments, machine.hub = 0.0, {3.0, math.inf}, Hub(RANKS, lambda: 0.0)
    HandTransport(machine, 0).wait(lambda: False, 7.0)
    assert machine.now == 7.0
