"""Summary of a run's traces: times of computing and waiting, and the age of messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from vitrail.comm.trace.recording import Recorder, TraceSpan

Interval = tuple[float, float]


@frozen(kw_only=True)
class Summary:
    """Numbers from the recorders of all ranks, in seconds.

    Attributes:
        makespan_s: Time from the earliest event of any rank to the latest.
        busy_s: Time in which each rank computed.
        exposed_s: Time in which each rank sent or waited, for messages or slower ranks, and did not compute.
        overlap: Share of the communication during which the rank computed: from each operation's begin to the end of
            the wait for it, or to the fetch; 1 if nothing was communicated. Defined as in Holistic Trace Analysis.
        staleness: Number of fetches by channel and age; the age is the number of versions posted after the one read.
    """

    makespan_s: float
    busy_s: tuple[float, ...]
    exposed_s: tuple[float, ...]
    overlap: float
    staleness: Mapping[str, Mapping[int, int]]

    @property
    def rest_s(self) -> tuple[float, ...]:
        """Remaining time by rank: work of the host, and idling outside any wait."""
        pairs = zip(self.busy_s, self.exposed_s, strict=True)
        return tuple(self.makespan_s - busy - exposed for busy, exposed in pairs)

    @property
    def busy_share(self) -> tuple[float, ...]:
        """Computing as a share of the makespan, by rank."""
        return tuple(busy / self.makespan_s if self.makespan_s else 0.0 for busy in self.busy_s)

    @property
    def mean_exposed_s(self) -> float:
        """Exposed communication, averaged over the ranks."""
        return sum(self.exposed_s) / len(self.exposed_s)

    @property
    def exposed_share(self) -> float:
        """Mean exposed communication as a share of the makespan."""
        return self.mean_exposed_s / self.makespan_s if self.makespan_s else 0.0

    @property
    def imbalance(self) -> float:
        """Computing of the busiest rank over the mean of all ranks; 1 if even."""
        mean = sum(self.busy_s) / len(self.busy_s)
        return max(self.busy_s) / mean if mean else 1.0


def summarize(recorders: Sequence[Recorder]) -> Summary:
    """Summarise the recorders of all ranks, which share one clock.

    Raises:
        ValueError: If there is none.
    """
    if not recorders:
        raise ValueError("a summary needs the recorder of one rank at least")
    ranks = sorted(recorders, key=lambda recorder: recorder.rank)
    moments = [moment for r in ranks for span in r.spans for moment in (span.begin, span.end)]
    moments += [flow.time for r in ranks for flow in r.flows] + [count.time for r in ranks for count in r.counts]
    busy = [union((s.begin, s.end) for s in r.spans if s.lane == "compute") for r in ranks]
    idle = [union((s.begin, s.end) for s in r.spans if s.lane in ("comm", "wait")) for r in ranks]
    open_ = [union(_operations(r, _published(ranks))) for r in ranks]
    hidden = sum(_length(each) - _length(_minus(each, work)) for each, work in zip(open_, busy, strict=True))
    total = sum(map(_length, open_))
    return Summary(
        makespan_s=max(moments, default=0.0) - min(moments, default=0.0),
        busy_s=tuple(_length(work) for work in busy),
        exposed_s=tuple(_length(_minus(each, work)) for each, work in zip(idle, busy, strict=True)),
        overlap=hidden / total if total else 1.0,
        staleness=_ages(ranks),
    )


def lines(summary: Summary) -> list[str]:
    """Return the summary as lines of text for the terminal."""
    s, ranks = summary, len(summary.busy_s)
    share, least = s.busy_share, min(range(ranks), key=lambda r: s.busy_s[r])
    most = max(range(ranks), key=lambda r: s.exposed_s[r])
    parts = [f"{s.makespan_s:.3f} s on {ranks} rank{'s' * (ranks > 1)}"]
    parts.append(f"computing: {sum(share) / ranks:.1%} of the time on average, {share[least]:.1%} on rank {least}")
    if ranks > 1:
        parts.append(
            f"exposed communication: {s.mean_exposed_s:.3f} s on average ({s.exposed_share:.1%}), "
            f"{s.exposed_s[most]:.3f} s on rank {most}"
        )
        parts.append(f"overlap: {s.overlap:.1%} of the communication ran while its rank computed")
        parts.append(f"imbalance: the busiest rank computed {s.imbalance:.2f} times the mean")
    for channel, ages in s.staleness.items():
        counted = ", ".join(f"{count} of age {age}" for age, count in ages.items())
        parts.append(f"messages read from channel {channel!r}: {counted}")
    return parts


# ---------------------------------------------------------------------- intervals


def _published(ranks: Iterable[Recorder]) -> dict[tuple[str, int], float]:
    """Return the time at which each version was published."""
    return {(f.channel, f.version): f.time for r in ranks for f in r.flows if f.end == "s"}


def _ages(ranks: Iterable[Recorder]) -> dict[str, dict[int, int]]:
    """Return the number of fetches by channel and age; a fetch records a flow, then its age."""
    found: dict[str, Counter[int]] = {}
    for recorder in ranks:
        fetches = (flow for flow in recorder.flows if flow.end == "f")
        ages = (count for count in recorder.counts if count.name == "staleness")
        for flow, age in zip(fetches, ages, strict=False):
            found.setdefault(flow.channel, Counter())[int(age.value)] += 1
    return {channel: dict(sorted(counter.items())) for channel, counter in sorted(found.items())}


def _operations(recorder: Recorder, published: dict[tuple[str, int], float]) -> list[Interval]:
    """Return the intervals of a rank's pending communication; a lower bound, since only waits record an end."""
    intervals = [(s.begin, s.end) for s in recorder.spans if s.lane in ("comm", "wait")]
    begun: dict[str, float] = {}  # begin of the last operation of a name; a wait may be for an earlier one
    for span in sorted(recorder.spans, key=_end):
        if span.lane == "comm":
            begun[span.name] = span.begin
        elif span.lane == "wait" and span.name in begun:
            intervals.append((begun[span.name], span.end))
    for flow in recorder.flows:
        start = published.get((flow.channel, flow.version))
        if flow.end == "f" and start is not None and start < flow.time:
            intervals.append((start, flow.time))
    return intervals


def _end(span: TraceSpan) -> float:
    return span.end


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals as disjoint intervals, in order."""
    result: list[Interval] = []
    for begin, end in sorted(intervals):
        if result and begin <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((begin, end))
    return result


def _minus(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Return the parts of disjoint intervals outside all others, disjoint and in order."""
    result, first = [], 0
    for begin, end in intervals:
        while first < len(others) and others[first][1] <= begin:
            first += 1
        for low, high in others[first:]:
            if low >= end:
                break
            if low > begin:
                result.append((begin, low))
            begin = high
        if begin < end:
            result.append((begin, end))
    return result


def _length(intervals: Sequence[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
