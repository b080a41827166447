"""Predictions: the closed formulas, the simulator, and what more ranks or slower links may do."""

import math
import time

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from loads import computed_until, costs, flows, loads, traces, world_sizes
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.speedup_model import RunLoad, StageLoad, predict, share_out
from vitrail.errors import ConfigError

PAIR_S, TILE_S, SERIAL_S = 0.1, 0.2, 0.3


def run(structure, windows, row_batch, tiles=9, **first):
    stages = (StageLoad(steps=25, views=structure, **first), StageLoad(steps=25, views=windows))
    return RunLoad(stages=stages, row_batch=row_batch, tiles=tiles)


@settings(max_examples=60)
@given(load=loads, cost=costs, world_size=world_sizes)
def test_the_simulator_takes_as_long(load, cost, world_size):
    simulated = computed_until(traces(load, cost, world_size))
    assert predict(load, cost, world_size).makespan_s == pytest.approx(simulated, abs=1e-9)


@settings(max_examples=60)
@given(load=flows, cost=costs, world_size=world_sizes)
def test_the_simulator_takes_as_long_without_a_barrier(load, cost, world_size):
    simulated = computed_until(traces(load, cost, world_size))
    assert predict(load, cost, world_size).makespan_s == pytest.approx(simulated, abs=1e-9)


def windows(side, exchange="dataflow", row_batch=2):
    stage = StageLoad(steps=25, views=side * side, grid=(side, side), exchange=exchange)
    return RunLoad(stages=(stage,), row_batch=row_batch)


@pytest.mark.parametrize(
    ("side", "row_batch", "speeds", "share"),
    [
        (3, 2, (1.0,) * 4, 0.98),
        (3, 1, (1.0,) * 8, 0.98),
        (7, 2, (1.0,) * 8, 0.98),
        (7, 2, (1.0,) * 7 + (0.5,), 0.98),
        (3, 1, (1.0,) * 7 + (0.5,), 0.95),
    ],
)
def test_without_a_barrier_windows_come_near_the_sum_of_speeds(side, row_batch, speeds, share):
    cost, load = (
        CostModel.of_pair(PAIR_S, 0.1, latency_s=5e-5, bandwidth=12e9, speeds=speeds),
        windows(side, "dataflow", row_batch),
    )
    alone = predict(load, evolve(cost, speeds=()), 1).makespan_s
    assert alone / predict(load, cost, len(speeds)).makespan_s >= share * sum(speeds)


def test_a_barrier_costs_what_the_dataflow_saves():
    cost = CostModel.of_pair(PAIR_S)
    assert predict(windows(3, "gather"), cost, 4).makespan_s == pytest.approx(25 * 3 * PAIR_S)
    assert predict(windows(3), cost, 4).makespan_s < 25 * 2.3 * PAIR_S


def test_a_dataflow_of_other_windows_than_its_grid_is_refused():
    with pytest.raises(ConfigError, match="needs as many windows"):
        StageLoad(steps=1, views=8, grid=(3, 3), exchange="dataflow")


@given(
    structure=st.integers(1, 20),
    windows=st.integers(1, 50),
    world_size=st.integers(1, 32),
    row_batch=st.sampled_from([1, 2]),
    mask=st.sampled_from([0.0, 0.05, 0.85]),
)
def test_without_latency_and_jitter_the_closed_formulas_hold(structure, windows, world_size, row_batch, mask):
    """View units (both branches in a forward) and branch units, barrier at every step."""
    cost = CostModel.of_pair(PAIR_S, mask_share=mask, tile_s=TILE_S, serial_s=SERIAL_S)
    load = run(structure, windows, row_batch, masked="all")
    parts = 2 // row_batch  # of a view
    turns = [math.ceil(parts * views / world_size) / parts for views in (structure, windows)]
    expected = PAIR_S * 25 * (turns[0] * (1 + mask) + turns[1])
    expected += math.ceil(load.tiles / world_size) * TILE_S + SERIAL_S
    assert predict(load, cost, world_size).makespan_s == pytest.approx(expected)


@given(load=loads, cost=costs, world_size=world_sizes, more=st.floats(0, 0.5))
def test_slower_links_never_make_a_run_shorter(load, cost, world_size, more):
    before = predict(load, cost, world_size).makespan_s
    assert predict(load, evolve(cost, latency_s=cost.latency_s + more), world_size).makespan_s >= before - 1e-9
    assert predict(load, evolve(cost, bandwidth=cost.bandwidth / (1 + more)), world_size).makespan_s >= before - 1e-9


@given(load=loads, cost=costs, world_size=world_sizes)
def test_a_message_of_the_step_before_is_never_waited_for_longer(load, cost, world_size):
    lags = (RunLoad(stages=tuple(evolve(s, lag=lag) for s in load.stages), row_batch=load.row_batch) for lag in (0, 1))
    same, before = (predict(lag, cost, world_size).makespan_s for lag in lags)
    assert before <= same + 1e-9


@given(load=loads, cost=costs, world_size=world_sizes)
def test_ranks_share_the_work_and_none_does_it_twice(load, cost, world_size):
    for stage in load.stages:
        shares = share_out(stage, load.row_batch, cost, world_size)
        batches = sorted(batch.unit for share in shares for batch in share)
        assert batches == list(range(len(batches)))
        assert sum(batch.rows for share in shares for batch in share) == stage.views * stage.branches
        assert any(share and share[0].with_key for share in shares), "the key view first"


@given(load=loads, cost=costs, world_size=world_sizes)
def test_by_channel_no_view_is_divided_and_the_key_view_comes_first(load, cost, world_size):
    for stage in (evolve(stage, exchange="channel") for stage in load.stages):
        owners = {}
        for rank, share in enumerate(share_out(stage, load.row_batch, cost, world_size)):
            for batch in share:
                rows = range(batch.unit * load.row_batch, batch.unit * load.row_batch + batch.rows)
                for row in rows:
                    owners.setdefault(row // stage.branches, set()).add(rank)
            keys = [batch.with_key for batch in share]
            assert keys == sorted(keys, reverse=True)
        assert all(len(ranks) == 1 for ranks in owners.values())


@given(load=loads, cost=costs, world_size=world_sizes)
def test_nobody_computes_longer_than_the_run(load, cost, world_size):
    forecast = predict(load, cost, world_size)
    assert max(forecast.busy_s) <= forecast.makespan_s - cost.serial_s + 1e-9
    assert 0 <= forecast.busy_share <= 1


def test_on_one_rank_links_do_not_matter():
    cost = CostModel.of_pair(PAIR_S, latency_s=100.0, bandwidth=1.0)
    load = run(4, 9, 2, exchange="channel")
    assert predict(load, cost, 1).makespan_s == pytest.approx(PAIR_S * 25 * 13)


def test_in_a_quiet_world_neither_channel_nor_lag_buys_anything():
    cost = CostModel.of_pair(PAIR_S)
    spent = {
        predict(run(4, 9, 2, exchange=exchange, lag=lag), cost, 4).makespan_s
        for exchange, lag in (("gather", 1), ("channel", 0), ("channel", 1))
    }
    assert max(spent) == pytest.approx(min(spent))


def test_by_channel_a_slow_link_is_paid_once_not_at_every_step():
    cost = CostModel.of_pair(PAIR_S, latency_s=0.01)
    only = {
        exchange: RunLoad(stages=(StageLoad(steps=25, views=4, lag=0, exchange=exchange),))
        for exchange in ("gather", "channel")
    }
    computing = 25 * PAIR_S
    assert predict(only["gather"], cost, 4).makespan_s == pytest.approx(computing + 25 * 0.01)
    assert predict(only["channel"], cost, 4).makespan_s <= computing + 3 * 0.01 + 1e-9  # open, follow, gather


def test_slots_bound_how_far_the_key_view_runs_ahead_and_the_simulator_agrees():
    cost = CostModel(row_s=0.1, cells=64, latency_s=1.0)
    spent = []
    for max_staleness in (1, 2, 8):
        stage = StageLoad(steps=20, views=4, cells=64, exchange="channel", lag=0, max_staleness=max_staleness)
        load = RunLoad(stages=(stage, StageLoad(steps=1, views=1, cells=64)))  # the last span ends the run
        forecast = predict(load, cost, 4).makespan_s
        assert forecast == pytest.approx(computed_until(traces(load, cost, 4)) + cost.latency_s)
        spent.append(forecast)
    assert spent[0] > spent[1] > spent[2]


def test_a_thousand_ranks_are_foretold_in_a_second():
    load = RunLoad(
        stages=(StageLoad(steps=25, views=256, exchange="channel"), StageLoad(steps=25, views=961)), tiles=256
    )
    cost = CostModel.of_pair(PAIR_S, 0.1, latency_s=1e-5, jitter=0.1, tile_s=0.1)
    begin = time.process_time()
    forecast = predict(load, cost, 1024)
    assert time.process_time() - begin < 1
    assert len(forecast.busy_s) == 1024
