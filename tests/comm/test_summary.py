"""A run in numbers: laws of the accounts, and what known traces must give."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loads import costs, loads, random_recorder, relayed, traces, world_sizes
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.recording import Count, Flow, Recorder, TraceSpan
from vitrail.comm.trace.speedup_model import predict
from vitrail.comm.trace.summary import lines, summarize


def recorder(rank, *spans):
    return Recorder(rank, float, [TraceSpan(lane, name, begin, end) for lane, name, begin, end in spans])


@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_busy_exposed_and_rest_are_the_makespan(seeds):
    summary = summarize([random_recorder(rank, seed) for rank, seed in enumerate(seeds)])
    for parts in zip(summary.busy_s, summary.exposed_s, summary.rest_s, strict=True):
        assert min(parts) >= -1e-9
        assert sum(parts) == pytest.approx(summary.makespan_s)
    assert 0 <= summary.overlap <= 1 + 1e-9
    assert summary.imbalance >= 1 - 1e-9
    assert 0 <= summary.exposed_share <= 1


@settings(max_examples=20)
@given(load=loads, cost=costs, world_size=world_sizes)
def test_a_simulated_run_has_no_rest_before_its_end(load, cost, world_size):
    """Every moment of a rank that does not compute is a wait: nothing else takes virtual time."""
    summary = summarize(traces(load, cost, world_size))
    forecast = predict(load, cost, world_size)
    assert summary.busy_s == pytest.approx([busy + cost.serial_s for busy in forecast.busy_s])
    slack = 2 * cost.message_s(10**5, world_size) if world_size > 1 else 1e-9  # the last messages of the goodbye
    assert max(summary.rest_s) <= slack


def test_overlapping_spans_count_once():
    summary = summarize([recorder(0, ("compute", "a", 0, 4), ("compute", "b", 1, 3), ("wait", "w", 2, 6))])
    assert summary.busy_s == (4,) and summary.exposed_s == (2,) and summary.makespan_s == 6


def test_a_gap_in_the_compute_lane_is_exposed_only_where_there_is_a_wait():
    summary = summarize([recorder(0, ("compute", "a", 0, 1), ("wait", "w", 2, 3), ("compute", "b", 4, 5))])
    assert summary.exposed_s == (1,) and summary.rest_s == (2,)


def test_communication_under_a_forward_is_overlap():
    hidden = recorder(0, ("comm", "gather", 0, 0), ("compute", "a", 0, 3), ("wait", "gather", 3, 4))
    assert summarize([hidden]).overlap == pytest.approx(0.75)
    assert summarize([recorder(0, ("comm", "g", 0, 0), ("wait", "g", 0, 4))]).overlap == 0
    assert summarize([recorder(0, ("compute", "a", 0, 1))]).overlap == 1


def test_imbalance_is_the_busiest_over_the_mean():
    ranks = [recorder(0, ("compute", "a", 0, 3)), recorder(1, ("compute", "a", 0, 1))]
    assert summarize(ranks).imbalance == pytest.approx(1.5)


def test_staleness_counts_fetches_by_channel_and_age():
    fetches = [Flow("f", channel, 0, 0.0) for channel in "aaba"]
    one = Recorder(0, float, flows=fetches, counts=[Count("staleness", age, 0.0) for age in (1, 0, 1, 1)])
    assert summarize([one, one]).staleness == {"a": {0: 2, 1: 4}, "b": {1: 2}}


def test_lag_one_reads_messages_of_age_one_after_the_warm_up():
    cost = CostModel(row_s=0.1, latency_s=0.01)
    assert summarize(traces(relayed(steps=4), cost, 4)).staleness == {"stage 0": {0: 4, 1: 12}}


def test_a_barrier_exposes_more_than_the_channel_when_links_are_slow():
    cost = CostModel(row_s=0.1, latency_s=0.05)
    waiting, free = (summarize(traces(relayed(exchange), cost, 4)) for exchange in ("gather", "channel"))
    assert free.mean_exposed_s < waiting.mean_exposed_s and free.makespan_s < waiting.makespan_s
    assert free.overlap > waiting.overlap


def test_the_lines_say_every_number_once_and_nothing_of_others_on_one_rank():
    told = lines(summarize(traces(relayed(), CostModel(row_s=0.1, latency_s=0.01), 4)))
    assert [line.split(":")[0].split()[-1] for line in told][1:] == [
        "computing", "communication", "overlap", "imbalance", "0'",
    ]  # fmt: skip
    alone = lines(summarize(traces(relayed("gather"), CostModel(row_s=0.1), 1)))
    assert len(alone) == 2 and "1 rank" in alone[0]


def test_no_recorder_is_refused():
    with pytest.raises(ValueError, match="one rank at least"):
        summarize([])
