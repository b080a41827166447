"""The cost model's laws, and the engine on the simulator with its time."""

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from loads import computed_until
from toy import ASG, sample, toy_sampler
from vitrail.comm import InProcess, Simulated
from vitrail.comm.trace.cost_model import CostModel, CostSchedule, SpendingRows, spend
from vitrail.comm.trace.speedup_model import RunLoad, StageLoad, predict
from vitrail.comm.trace.summary import summarize
from vitrail.errors import ConfigError
from vitrail.sampling.sampler import Sampler, Spread

positive = st.floats(1e-4, 10)


@given(launch=st.floats(0, 1), row=positive, sizes=st.sets(st.integers(1, 64), min_size=2, max_size=6))
def test_a_fit_finds_the_line_it_was_measured_from(launch, row, sizes):
    model = CostModel(row_s=row, launch_s=launch)
    found = CostModel.fitted({rows: model.forward_s(rows) for rows in sizes})
    assert found.row_s == pytest.approx(row, rel=1e-6, abs=1e-9)
    assert found.launch_s == pytest.approx(launch, rel=1e-6, abs=1e-7)


@given(seconds=st.dictionaries(st.integers(1, 64), positive, min_size=2))
def test_a_fit_of_anything_is_a_model(seconds):
    found = CostModel.fitted(seconds, latency_s=0.1)
    assert found.row_s >= 0 and found.launch_s >= 0 and found.latency_s == 0.1


def test_one_size_is_not_enough_for_a_fit():
    with pytest.raises(ConfigError, match="two sizes"):
        CostModel.fitted({2: 0.1})


@given(pair=positive, share=st.floats(0, 1))
def test_a_pair_costs_what_was_said(pair, share):
    assert CostModel.of_pair(pair, share).forward_s(2) == pytest.approx(pair)


def test_rows_cost_by_their_cells_and_masks_by_their_share():
    model = CostModel(row_s=0.1, launch_s=1.0, cells=100, mask_share=0.5)
    assert model.forward_s(3, 200) == pytest.approx(1.6)
    assert model.forward_s(3, 200, masked=True) == pytest.approx(2.4)


@given(rank=st.integers(0, 2000), step=st.integers(0, 100), nth=st.integers(0, 9), seed=st.integers(0, 9))
def test_jitter_depends_on_the_moment_alone(rank, step, nth, seed):
    model = CostModel(row_s=1.0, jitter=0.3, seed=seed)
    assert model.spent_s(1.0, rank, step, nth) == evolve(model, latency_s=5).spent_s(1.0, rank, step, nth) > 0


def test_jitter_has_mean_one_and_the_deviation_that_was_asked_for():
    model = CostModel(row_s=1.0, jitter=0.4)
    drawn = [model.spent_s(1.0, rank, step, 0) for rank in range(100) for step in range(50)]
    mean = sum(drawn) / len(drawn)
    assert mean == pytest.approx(1, abs=0.03)
    logs = [math.log(x) for x in drawn]
    center = sum(logs) / len(logs)
    assert math.sqrt(sum((x - center) ** 2 for x in logs) / len(logs)) == pytest.approx(0.4, abs=0.02)
    other = evolve(model, seed=1)
    assert all(other.spent_s(1.0, rank, 0, 0) != model.spent_s(1.0, rank, 0, 0) for rank in range(10))


def test_a_rank_of_half_the_speed_takes_twice_as_long():
    model = CostModel(row_s=1.0, speeds=(1.0, 0.5))
    assert [model.spent_s(1.0, rank, 0, 0) for rank in range(3)] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("wrong", [{"row_s": -1}, {"bandwidth": 0}, {"speeds": (1, 0)}, {"jitter": -0.1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CostModel(**({"row_s": 1.0} | wrong))


@given(nbytes=st.integers(0, 10**9), latency=st.floats(0, 1), rate=st.floats(1e3, 1e12))
def test_a_message_takes_its_latency_and_its_bytes(nbytes, latency, rate):
    model = CostModel(row_s=1.0, latency_s=latency, bandwidth=rate)
    assert model.message_s(nbytes) == pytest.approx(latency + nbytes / rate)
    assert CostSchedule(model, 2).delay(0, 1, nbytes) == model.message_s(nbytes)
    assert CostSchedule(model, 5).delay(0, 1, nbytes) == model.message_s(nbytes, copies=4)


def test_a_simulated_broadcast_takes_what_the_model_says():
    model = CostModel(row_s=1.0, latency_s=0.25, bandwidth=100.0)

    def program(comm):
        comm.broadcast(torch.zeros(25), 0)  # 100 bytes
        return comm.trace.clock()

    outcome = Simulated(timeout=1e6).simulate(2, program, CostSchedule(model, 2))
    assert outcome.results == {0: 0.25, 1: 1.25}


def test_time_that_passes_by_itself_is_not_spent():
    InProcess().run(2, lambda comm: spend(comm, 1e9))


def on_simulator(cost, world_size, stages=ASG):
    """The traces of real runs with a denoiser that costs nothing but virtual time."""
    sampler = toy_sampler(*stages)

    def program(comm):
        plugins = [("spending", SpendingRows(comm, cost))]
        own = Sampler(sampler.backbone, sampler.composition, model=sampler.model, plugins=plugins)
        return sample(own, spread=Spread(communicator=comm), row_batch=2, guidance_scale=2.0)

    with torch.inference_mode():
        outcome = Simulated(timeout=1e6).simulate(world_size, program, CostSchedule(cost, world_size))
    assert not outcome.errors
    return outcome.traces


LOAD = RunLoad(stages=(StageLoad(steps=2, views=4, cells=64), StageLoad(steps=2, views=9, cells=64)))  # of the toy


@pytest.mark.parametrize("jitter", [0.0, 0.2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_engine_takes_as_long_as_foretold(world_size, jitter):
    cost = CostModel(row_s=0.05, launch_s=0.01, cells=64, jitter=jitter)
    forecast, summary = predict(LOAD, cost, world_size), summarize(on_simulator(cost, world_size))
    assert summary.makespan_s == pytest.approx(forecast.makespan_s, abs=1e-9)
    assert summary.busy_s == pytest.approx(forecast.busy_s, abs=1e-9)


@given(world_size=st.integers(2, 4), latency=st.sampled_from([1e-3, 0.1, 0.5]))
@settings(max_examples=6)
def test_with_slow_links_the_engine_takes_a_few_messages_more(world_size, latency):
    """They compare what they are about to do and, twice in a stage of two steps, what they did, and say goodbye."""
    cost = CostModel(row_s=0.05, cells=64, latency_s=latency)
    more = computed_until(on_simulator(cost, world_size)) - predict(LOAD, cost, world_size).makespan_s
    assert -latency <= more <= (4 + 2 * len(LOAD.stages)) * latency


def test_by_channel_the_engine_takes_at_most_a_forward_and_a_few_messages_more():
    apart = {**ASG[0], "patching": {"type": "lattice", "interaction": "none"}}
    cost = CostModel(row_s=0.05, cells=64, latency_s=0.01)
    load = evolve(LOAD, stages=(evolve(LOAD.stages[0], exchange="channel"), LOAD.stages[1]))
    more = computed_until(on_simulator(cost, 4, (apart, ASG[1]))) - predict(load, cost, 4).makespan_s
    assert -cost.latency_s <= more <= cost.forward_s(2, 64) + (4 + len(load.stages) + 1) * cost.latency_s
