"""Recording of a rank's timed events: spans, flows between ranks, counters.

Recording is always on: a run has a few thousand events at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from attrs import define, field, frozen

Lane = Literal["host", "compute", "comm", "wait"]
LANES: tuple[Lane, ...] = ("host", "compute", "comm", "wait")


@frozen
class TraceSpan:
    """An interval of work, communication or waiting; times are seconds of the transport's clock."""

    lane: Lane
    name: str
    begin: float
    end: float
    args: dict[str, Any] = field(factory=dict)


@frozen
class Flow:
    """One end of a channel's message: published ("s") or fetched ("f")."""

    end: Literal["s", "f"]
    channel: str
    version: int
    time: float


@frozen
class Count:
    """A counter's value at a moment."""

    name: str
    value: float
    time: float


@define
class Recorder:
    """The events of one rank, in the order in which they ended."""

    rank: int
    clock: Callable[[], float]
    spans: list[TraceSpan] = field(factory=list)
    flows: list[Flow] = field(factory=list)
    counts: list[Count] = field(factory=list)

    @contextmanager
    def span(self, lane: Lane, name: str, **args: Any) -> Iterator[None]:
        """Record the block as a span.

        Args:
            lane: Kind of work.
            name: Text of the span.
            **args: Details, of JSON types.
        """
        begin = self.clock()
        try:
            yield
        finally:
            self.spans.append(TraceSpan(lane, name, begin, self.clock(), args))

    def flow(self, end: Literal["s", "f"], channel: str, version: int) -> None:
        """Record one end of a message, now.

        Args:
            end: "s" for published, "f" for fetched.
            channel: Name of the channel.
            version: Version of the message.
        """
        self.flows.append(Flow(end, channel, version, self.clock()))

    def count(self, name: str, value: float) -> None:
        """Record the value of a counter, now."""
        self.counts.append(Count(name, value, self.clock()))

    def restart(self) -> None:
        """Delete all events, when a run begins on a communicator that was used before."""
        for events in (self.spans, self.flows, self.counts):
            events.clear()

    def copy(self) -> Recorder:
        """Return a copy with the events so far."""
        return Recorder(self.rank, self.clock, list(self.spans), list(self.flows), list(self.counts))
