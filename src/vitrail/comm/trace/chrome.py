"""Trace files with all ranks, for Perfetto (https://ui.perfetto.dev) or chrome://tracing.

The Trace Event Format (Google): a rank is a process, a lane a thread; spans are ``X`` events in microseconds, a
message is an arrow from ``s`` to ``f`` events, a counter a ``C`` event, names are ``M`` events. Times count from
the earliest event of all ranks. Equal recorders give equal bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vitrail.comm.trace.recording import LANES, Count, Flow, Lane, Recorder, TraceSpan
from vitrail.errors import ConfigError

MICRO = 1e6
DIGITS = 3  # decimals of a microsecond
WHOLE = frozenset(("step", "stage", "version"))  # arguments by which events are told apart
MOST, LATEST = 10**6, 1e15  # bounds of whole numbers, and of times in microseconds, of a file
MARK_US = 1.0  # length of the span at an arrow's end, where there is room
IN_FLIGHT = "bytes in flight"
Event = dict[str, Any]

# ---------------------------------------------------------------------- plain data


def as_data(recorder: Recorder) -> dict[str, Any]:
    """Convert a recorder to JSON types, e.g. for ``broadcast_object``."""
    return {
        "rank": recorder.rank,
        "spans": [[s.lane, s.name, s.begin, s.end, _plain(s.args)] for s in recorder.spans],
        "flows": [[f.end, f.channel, f.version, f.time] for f in recorder.flows],
        "counts": [[c.name, c.value, c.time] for c in recorder.counts],
    }


def from_data(data: Mapping[str, Any]) -> Recorder:
    """Convert back to a recorder, which can be pickled; its clock is fixed at its last event."""
    spans = [TraceSpan(*values) for values in data["spans"]]
    flows = [Flow(*values) for values in data["flows"]]
    counts = [Count(*values) for values in data["counts"]]
    recorder = Recorder(data["rank"], float, spans, flows, counts)
    recorder.clock = functools.partial(float, max(_moments(recorder), default=0.0))
    return recorder


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; other types become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _moments(recorder: Recorder) -> Iterator[float]:
    yield from (moment for span in recorder.spans for moment in (span.begin, span.end))
    yield from (flow.time for flow in recorder.flows)
    yield from (count.time for count in recorder.counts)


# ---------------------------------------------------------------------- writing


def trace_text(recorders: Iterable[Recorder]) -> str:
    """Return the text of a trace file for all ranks."""
    lines = ",\n".join(json.dumps(event, sort_keys=True, allow_nan=False) for event in events_of(recorders))
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def events_of(recorders: Iterable[Recorder]) -> list[Event]:
    """Return all trace events of a run."""
    ranks = sorted(recorders, key=lambda recorder: recorder.rank)
    zero = min((moment for recorder in ranks for moment in _moments(recorder)), default=0.0)
    events = [event for recorder in ranks for event in (*_names(recorder), *_spans(recorder, zero))]
    events += [event for recorder in ranks for event in _counters(recorder, zero)]
    return events + _messages(ranks, zero)


def flow_id(channel: str, version: int, destination: int, nth: int = 0) -> int:
    """Return the id of the arrow from a publish to the nth fetch on a rank; fits JavaScript's integers.

    Args:
        channel: Name of the channel.
        version: Version of the message.
        destination: Rank that fetches.
        nth: Number of the fetch of this version on that rank, from 0.
    """
    text = f"{channel}\0{version}\0{destination}\0{nth}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


def _micros(seconds: float) -> float:
    return round(seconds * MICRO, DIGITS)


def _names(recorder: Recorder) -> Iterator[Event]:
    head = {"ph": "M", "pid": recorder.rank, "tid": 0}
    yield {**head, "name": "process_name", "args": {"name": f"rank {recorder.rank}"}}
    yield {**head, "name": "process_sort_index", "args": {"sort_index": recorder.rank}}
    for tid, lane in enumerate(LANES):
        yield {**head, "tid": tid, "name": "thread_name", "args": {"name": lane}}
        yield {**head, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _spans(recorder: Recorder, zero: float) -> Iterator[Event]:
    for span in recorder.spans:
        begin, end = _micros(span.begin - zero), _micros(span.end - zero)
        yield {
            "ph": "X",
            "cat": span.lane,
            "name": span.name,
            "pid": recorder.rank,
            "tid": LANES.index(span.lane),
            "ts": begin,
            "dur": round(end - begin, DIGITS),
            "args": _plain(span.args),
        }


def _counters(recorder: Recorder, zero: float) -> Iterator[Event]:
    for count in recorder.counts:
        yield _counter(recorder.rank, count.name, _micros(count.time - zero), count.value)


def _counter(rank: int, name: str, at: float, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": rank, "tid": 0, "ts": at, "args": {"value": _plain(value)}}


# ---------------------------------------------------------------------- messages


def _messages(ranks: Sequence[Recorder], zero: float) -> list[Event]:
    """Return arrows from each publish to each fetch, and the counters of bytes in flight."""
    published = {(f.channel, f.version): (r.rank, f) for r in ranks for f in r.flows if f.end == "s"}
    marks = {recorder.rank: _Marks(recorder, zero) for recorder in ranks}
    events: list[Event] = []
    changes: dict[int, list[tuple[float, int]]] = {}
    for recorder in ranks:
        seen: dict[tuple[str, int], int] = {}
        for flow in (f for f in recorder.flows if f.end == "f" and (f.channel, f.version) in published):
            key = flow.channel, flow.version
            source, start = published[key]
            nth = seen[key] = seen.get(key, -1) + 1
            number = flow_id(*key, recorder.rank, nth)
            events += [*marks[source].event(start), _arrow(start, source, number, zero)]
            events += [*marks[recorder.rank].event(flow), _arrow(flow, recorder.rank, number, zero)]
            if source != recorder.rank and nth == 0:
                nbytes = marks[source].nbytes.get(key, 0)
                changes.setdefault(source, []).extend([(start.time, nbytes), (flow.time, -nbytes)])
    return events + [event for rank, moves in sorted(changes.items()) for event in _in_flight(rank, moves, zero)]


def _arrow(flow: Flow, rank: int, number: int, zero: float) -> Event:
    """Return one end of an arrow; an "f" event binds to the enclosing span, not to the next one."""
    binding = {"bp": "e"} if flow.end == "f" else {}
    where = {"pid": rank, "tid": LANES.index("comm"), "ts": _micros(flow.time - zero)}
    args = {"version": flow.version}
    return {"ph": flow.end, "id": number, "cat": "channel", "name": flow.channel, "args": args, **where, **binding}


def _in_flight(rank: int, moves: Sequence[tuple[float, int]], zero: float) -> Iterator[Event]:
    """Yield the bytes that a rank has published and other ranks have not fetched yet."""
    total = 0
    for moment in sorted({moment for moment, _ in moves}):
        total += sum(change for at, change in moves if at == moment)
        yield _counter(rank, IN_FLIGHT, _micros(moment - zero), total)


class _Marks:
    """Short spans in a rank's comm lane for arrows to begin and end at; they overlap no other span."""

    def __init__(self, recorder: Recorder, zero: float):
        self._rank, self._zero = recorder.rank, zero
        comm = [span for span in recorder.spans if span.lane == "comm"]
        moments = [span.begin for span in comm] + [flow.time for flow in recorder.flows]
        self._moments = sorted(_micros(moment - zero) for moment in moments)
        self._done: set[Flow] = set()
        posts = [s.args for s in comm if "/" in str(s.args.get("domain", "")) and "seq" in s.args]
        self.nbytes = {(unquote(a["domain"].rpartition("/")[2]), a["seq"]): int(a.get("bytes", 0)) for a in posts}

    def event(self, flow: Flow) -> list[Event]:
        """Return the span of one end of an arrow; empty if it exists already."""
        if flow in self._done:
            return []
        self._done.add(flow)
        begin = _micros(flow.time - self._zero)
        after = bisect_right(self._moments, begin)
        alone = after - bisect_left(self._moments, begin) == 1
        room = self._moments[after] - begin if after < len(self._moments) else MARK_US
        return [
            {
                "ph": "X",
                "cat": "mark",
                "name": f"{'publish' if flow.end == 's' else 'fetch'} {flow.channel}",
                "pid": self._rank,
                "tid": LANES.index("comm"),
                "ts": begin,
                "dur": round(min(room, MARK_US), DIGITS) if alone else 0.0,
                "args": {"version": flow.version},
            }
        ]


# ---------------------------------------------------------------------- reading


def recorders_of(data: Any, path: Path) -> list[Recorder]:
    """Return the recorders of a trace file, by rank; publishes that were never fetched are not in it.

    Args:
        data: The parsed JSON.
        path: Path of the file, for messages.

    Raises:
        ConfigError: If it is not a trace of Vitrail.
    """
    events = data.get("traceEvents") if isinstance(data, dict) else None
    if not isinstance(events, list):
        raise ConfigError(f"{path}: not a trace: expected JSON with a list 'traceEvents'")
    ranks: dict[int, Recorder] = {}
    for number, event in enumerate(events):
        try:
            rank = _whole(event["pid"])
            recorder = ranks.setdefault(rank, Recorder(rank, float))
            _take(event, recorder)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ConfigError(f"{path}: event {number} is not one of a Vitrail trace ({reason})") from error
    if not any(recorder.spans for recorder in ranks.values()):
        raise ConfigError(f"{path}: the trace has no spans; was the run recorded?")
    return [from_data(as_data(ranks[rank])) for rank in sorted(ranks)]


def _take(event: Event, recorder: Recorder) -> None:
    """Add an event to its rank's recorder, unless it is derived from others."""
    kind, args, name = event["ph"], event.get("args", {}), event["name"]
    if kind == "M":
        return
    if not isinstance(name, str) or not isinstance(args, dict):
        raise ValueError("it needs a text 'name' and a table 'args'")
    for key in WHOLE & args.keys():
        _whole(args[key])
    time = _time(event["ts"]) / MICRO
    if kind == "X" and event["cat"] != "mark":
        lane: Lane = LANES[LANES.index(event["cat"])]
        end = round(event["ts"] + _time(event["dur"]), DIGITS) / MICRO
        recorder.spans.append(TraceSpan(lane, name, time, end, args))
    elif kind in ("s", "f"):
        flow = Flow(kind, name, args["version"], time)
        if kind == "f" or flow not in recorder.flows:
            recorder.flows.append(flow)
    elif kind == "C" and name != IN_FLIGHT:
        recorder.counts.append(Count(name, args["value"], time))


def _whole(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < MOST:
        raise ValueError(f"{value!r} is no number of a rank, step, stage or version")
    return value


def _time(value: object) -> float:
    if not isinstance(value, (int, float)) or not abs(value) < LATEST:  # nan is not, either
        raise ValueError(f"{value!r} is no time in microseconds")
    return value
