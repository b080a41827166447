"""Trace files: they load, nothing overlaps, arrows have two ends, reading gives back what was written."""

import json
import math
import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loads import costs, loads, random_recorder, relayed, traces, world_sizes
from vitrail.cli.timeline import draw, read_trace
from vitrail.comm import InProcess, Simulated
from vitrail.comm.trace.chrome import as_data, events_of, from_data, trace_text
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.recording import LANES, Recorder
from vitrail.comm.trace.summary import summarize
from vitrail.errors import ConfigError

COST = CostModel(row_s=0.1, latency_s=0.03, jitter=0.2)


def written(tmp_path, recorders):
    path = tmp_path / "trace.json"
    path.write_text(trace_text(recorders), encoding="utf-8")
    return path


def in_lanes(events):
    lanes = {}
    for event in (e for e in events if e["ph"] == "X"):
        lanes.setdefault((event["pid"], event["tid"]), []).append(event)
    return lanes


@settings(max_examples=20)
@given(load=loads, cost=costs, world_size=world_sizes)
def test_spans_never_overlap_within_a_lane_of_a_rank(load, cost, world_size):
    for lane in in_lanes(events_of(traces(load, cost, world_size))).values():
        ordered = sorted(lane, key=lambda e: (e["ts"], e["ts"] + e["dur"]))
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in pairwise(ordered))


@settings(max_examples=20)
@given(load=loads, cost=costs, world_size=world_sizes)
def test_every_arrow_has_both_ends_in_order_and_each_lies_on_a_span(load, cost, world_size):
    events = events_of(traces(load, cost, world_size))
    ends = {end: {e["id"]: e for e in events if e["ph"] == end} for end in "sf"}
    assert set(ends["s"]) == set(ends["f"])
    assert sum(e["ph"] in "sf" for e in events) == 2 * len(ends["s"]), "an id was used twice"
    lanes = in_lanes(events)
    for number, start in ends["s"].items():
        assert start["ts"] <= ends["f"][number]["ts"]
        for event in (start, ends["f"][number]):
            spans = lanes[event["pid"], event["tid"]]
            assert any(s["ts"] <= event["ts"] <= s["ts"] + s["dur"] for s in spans)


def test_messages_point_from_the_key_view_to_every_rank():
    events = events_of(traces(relayed(), COST, 4))
    assert {e["pid"] for e in events if e["ph"] == "s"} == {0}
    assert {e["pid"] for e in events if e["ph"] == "f"} == {0, 1, 2, 3}
    assert {e["args"]["version"] for e in events if e["ph"] == "f"} == {0, 1, 2}


def test_bytes_in_flight_begin_and_end_at_nothing():
    events = [e for e in events_of(traces(relayed(), COST, 4)) if e["name"] == "bytes in flight"]
    values = [e["args"]["value"] for e in events]
    assert values[-1] == 0 and min(values) == 0 and max(values) > 0


def test_times_count_from_the_earliest_event():
    recorders = [random_recorder(rank, rank + 1) for rank in range(3)]
    timed = [e["ts"] for e in events_of(recorders) if "ts" in e]
    assert min(timed) == 0


def test_ranks_and_lanes_have_names(tmp_path):
    events = json.loads(written(tmp_path, traces(relayed(), COST, 2)).read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {(rank, tid): lane for rank in (0, 1) for tid, lane in enumerate(LANES)}
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"rank 0", "rank 1"}


def test_equal_runs_give_equal_bytes(tmp_path):
    texts = [written(tmp_path, traces(relayed(), COST, 3)).read_bytes() for _ in range(2)]
    assert texts[0] == texts[1]
    shuffled = written(tmp_path, traces(relayed(), COST, 3)[::-1]).read_bytes()
    assert shuffled == texts[0], "the order of ranks must not matter"


def test_nothing_is_left_beside_the_file(tmp_path):
    written(tmp_path, traces(relayed(), COST, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@given(seed=st.integers(0, 1000))
def test_plain_data_gives_the_recorder_back(seed):
    data = as_data(random_recorder(3, seed))
    again = from_data(json.loads(json.dumps(data)))
    assert as_data(again) == data
    copy = pickle.loads(pickle.dumps(again))  # as a spawned rank hands it over
    assert (as_data(copy), copy.clock()) == (data, again.clock())


def test_what_json_does_not_know_becomes_text():
    recorder = Recorder(0, lambda: 0.0)
    with recorder.span("host", "odd", path=object, much=float("inf"), shape=(1, 2), good=True):
        pass
    args = as_data(recorder)["spans"][0][4]
    assert args == {"path": str(object), "much": "inf", "shape": [1, 2], "good": True}
    json.dumps(args, allow_nan=False)


@pytest.mark.parametrize("backend", [InProcess(), Simulated()], ids=["in-process", "simulated"])
def test_recorders_travel_as_objects(backend):
    def program(comm):
        comm.barrier()
        told = [comm.broadcast_object(as_data(comm.trace), src) for src in range(comm.world_size)]
        return [from_data(data).rank for data in told], [len(data["spans"]) > 0 for data in told]

    assert backend.run(3, program) == [([0, 1, 2], [True] * 3)] * 3


def test_reading_gives_back_spans_messages_and_numbers(tmp_path):
    recorders = traces(relayed(), COST, 4)
    again = read_trace(written(tmp_path, recorders))
    for before, after in zip(recorders, again, strict=True):
        assert [(s.lane, s.name, s.args) for s in before.spans] == [(s.lane, s.name, s.args) for s in after.spans]
        assert [f.version for f in before.flows if f.end == "f"] == [f.version for f in after.flows if f.end == "f"]
    a, b = summarize(recorders), summarize(again)
    assert b.makespan_s == pytest.approx(a.makespan_s, abs=1e-8)
    assert b.busy_s == pytest.approx(a.busy_s, abs=1e-8) and b.exposed_s == pytest.approx(a.exposed_s, abs=1e-8)
    assert b.staleness == a.staleness


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("no json", "is no JSON"),
        ("[]", "not a trace"),
        ('{"traceEvents": [{"ph": "X"}]}', "event 0"),
        ('{"traceEvents": [3]}', "event 0"),
        ('{"traceEvents": [{"ph": "X", "pid": 0, "cat": "gpu", "name": "n", "ts": 0, "dur": 1}]}', "event 0"),
        ('{"traceEvents": []}', "no spans"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, text, told):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


WRONG = [
    *({"pid": value} for value in (-1, 10**30, 1.5, math.nan, "0", {}, None)),
    *({"ts": value} for value in (math.nan, math.inf, 1e300, "0", None)),
    *({"dur": value} for value in (math.nan, -math.inf, [])),
    *({"name": value} for value in ({}, [], 3, None)),
    *({"args": value} for value in (3, "x", [], {"step": {}}, {"step": -1}, {"stage": "x"}, {"stage": 10**9})),
    *({key: None} for key in ("ph", "cat")),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_event_with_anything_else_in_it_is_refused(tmp_path, wrong):
    event = {"ph": "X", "pid": 0, "tid": 0, "ts": 0, "dur": 1, "name": "a", "cat": "compute", "args": {"step": 0}}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [event]}))
    assert [span.name for span in read_trace(path)[0].spans] == ["a"]
    path.write_text(json.dumps({"traceEvents": [event | wrong]}))
    with pytest.raises(ConfigError, match=r"event 0 is not one of a Vitrail trace|has no spans"):
        read_trace(path)


def test_more_ranks_than_a_figure_holds_are_refused(tmp_path):
    events = [{"ph": "X", "pid": rank, "ts": 0, "dur": 1, "name": "a", "cat": "compute"} for rank in range(1025)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    with pytest.raises(ConfigError, match="1025 ranks are more than 1024"):
        draw([path], ["all"], tmp_path / "a.png")
