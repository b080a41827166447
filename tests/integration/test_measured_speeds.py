"""Ranks that measure their speeds: the bits of one rank, shares by what was measured, and one vector for all."""

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from test_checkpoint import Ender, PowerCutError
from test_ranks import APART, STAGES, on_ranks, rows_of

from often import every
from toy import ASG, DETAIL, FACTOR, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess, Simulated
from vitrail.comm.trace.cost_model import CostModel, CostSchedule, SpendingRows, spend
from vitrail.errors import ConfigError, ProtocolError
from vitrail.sampling.sampler import Sampler, Spread

AUTO = {"speeds": "auto"}
CALL = {"row_batch": 2, "guidance_scale": 2.0}  # nine windows of two rows each, one forward a window
COST = CostModel(row_s=0.05, launch_s=0.01, cells=64)
WINDOWS = ({**DETAIL, "patching": {"type": "windows", "overlap": 0.5}},)  # without jitter: as much work at every step


@frozen(eq=False)
class Spending:
    """Every forward takes the virtual time of a rank that has another speed at every step."""

    communicator: object
    speeds: tuple  # of each rank, by step

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        own = self.speeds[self.communicator.rank]
        spend(self.communicator, len(rows.views) / own[step.index % len(own)])
        return (yield)


def run(sampler, spread, steps=4, **options):
    size = {"height": 16 * FACTOR, "width": 16 * FACTOR, "num_inference_steps": steps}
    return sampler("anything", output_type="latent", spread=spread, **size, **CALL | options)


def simulated(stages, plugin, spread, world=3, schedule=None, **call):
    """Results by rank and the outcome of ranks on a virtual clock; ``plugin`` spends the time of forwards."""
    sampler = toy_sampler(*stages)

    def program(communicator):
        plugins = [("spending", plugin(communicator))]
        own = Sampler(sampler.backbone, sampler.composition, model=sampler.model, plugins=plugins)
        return run(own, Spread(communicator=communicator, **spread), **call)

    with torch.inference_mode():
        outcome = Simulated(timeout=1e6).simulate(world, program, schedule)
    assert not outcome.errors
    return [outcome.results[rank] for rank in range(world)], outcome


def by_cost(cost, spread, world=3, **call):
    return simulated(
        WINDOWS, lambda communicator: SpendingRows(communicator, cost), spread, world, CostSchedule(cost, world), **call
    )


def shares(outcome):
    """Rows by step, of every rank."""
    found = [{}, {}, {}]
    for rank, trace in enumerate(outcome.traces):
        for step, rows in rows_of(trace):
            found[rank][step] = found[rank].get(step, 0) + rows
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stages", every(3, STAGES))
def test_threads_that_measure_give_the_bits_of_one_rank(stages, world):
    alone = sample(toy_sampler(*STAGES[stages]), **CALL)
    for latents in on_ranks(InProcess(timeout=600), world, lambda: toy_sampler(*STAGES[stages]), AUTO, **CALL):
        assert torch.equal(latents, alone)


@given(
    speeds=st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=3), min_size=3, max_size=3),
    stages=st.sampled_from(list(STAGES)),
)
@settings(max_examples=8)
def test_ranks_of_unlike_speeds_that_change_on_the_way_give_the_bits_of_one(speeds, stages):
    alone = sample(toy_sampler(*STAGES[stages]), steps=6, **CALL)
    results, _ = simulated(STAGES[stages], lambda communicator: Spending(communicator, speeds), AUTO, steps=6)
    assert all(torch.equal(result.latents, alone) for result in results)
    assert len({result.report.notes for result in results}) == 1, "all agree, though each has measured something else"


def test_a_rank_of_half_the_speed_gets_what_it_would_if_its_speed_were_given():
    cost = evolve(COST, speeds=(1.0, 1.0, 0.5))
    (measured, *_), auto = by_cost(cost, AUTO)
    _, given_ = by_cost(cost, {"speeds": (1, 1, 0.5)})
    _, equal = by_cost(cost, {})
    assert measured.report.notes == ("speeds of the ranks from step 2 on, as measured: 1, 1, 0.5",)
    for own, ours, theirs in zip(*map(shares, (auto, given_, equal)), strict=True):
        assert own == {**ours, 0: theirs[0]}
    assert shares(auto) != shares(equal)
    assert given_.makespan < auto.makespan < equal.makespan


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_equal_ranks_stay_equal_for_all_their_noise(seed):
    (result, *_), outcome = by_cost(evolve(COST, jitter=0.02, seed=seed), AUTO, steps=10)
    assert result.report.notes == ("speeds of the ranks from step 2 on, as measured: 1, 1, 1",)
    assert shares(outcome) == shares(by_cost(COST, {}, steps=10)[1])


def test_a_rank_that_becomes_slow_has_less_to_do_soon_and_all_of_it_is_told():
    speeds = (*[(1.0,)] * 2, (*[1.0] * 3, *[0.25] * 20))  # slow from the fourth step on
    with capture_logs() as logs:
        results, outcome = simulated(WINDOWS, lambda communicator: Spending(communicator, speeds), AUTO, steps=20)
    agreed = [each for each in logs if each["event"] == "speeds.agreed"]
    assert [(each["step"], each["speeds"]) for each in agreed] == [(1, [1.0] * 3)] * 3 + [(8, [1.0, 1.0, 0.25])] * 3
    assert [len(result.report.notes) for result in results] == [2] * 3
    assert [[count.value for count in trace.counts if count.name == "speed"] for trace in outcome.traces] == [
        *[[1.0, 1.0]] * 2,
        [1.0, 0.25],
    ]
    rows = shares(outcome)[2]
    assert rows[7] == rows[0] > rows[8] == rows[19]


def test_measuring_costs_no_message_of_its_own_and_one_rank_measures_nothing():
    def count(outcome):
        return [sum(span.lane == "comm" for span in trace.spans) for trace in outcome.traces]

    assert count(by_cost(COST, AUTO, steps=10)[1]) == count(by_cost(COST, {}, steps=10)[1])
    (one,), outcome = by_cost(COST, AUTO, world=1)
    assert count(outcome) == count(by_cost(COST, {}, world=1)[1]) and one.report.notes == ()


def test_ranks_that_go_apart_are_shared_out_by_what_was_measured_before():
    """The stage that is apart comes second, and its shares stay as they were at its begin."""
    stages = ({**DETAIL, "until": 0.5}, {key: value for key, value in APART.items() if key != "until"})
    speeds = ((1.0,), (1.0,), (0.1,))
    results, outcome = simulated(stages, lambda communicator: Spending(communicator, speeds), AUTO, steps=6)
    alone = sample(toy_sampler(*stages), steps=6, **CALL)
    assert all(torch.equal(result.latents, alone) for result in results)
    assert shares(outcome)[2].keys() == {0}


def test_a_second_picture_begins_with_the_speeds_of_the_first():
    cost = evolve(COST, speeds=(1.0, 1.0, 0.5))
    (result, *_), outcome = by_cost(cost, AUTO, num_images=2)
    assert len(result.report.notes) == 1
    own = [rows for step, rows in rows_of(outcome.traces[2]) if step == 0]
    assert len(own) == 3 + 1, "a third of the first picture's first step, a ninth of the second's"


def test_a_run_that_goes_on_measures_again(tmp_path):
    expected, path = sample(toy_sampler(*WINDOWS), steps=6, **CALL), tmp_path / "run.ckpt"
    spread = {**AUTO, "checkpoint": path, "checkpoint_every": 2}

    def cut(communicator):
        sampler = toy_sampler(*WINDOWS, plugins=[("ender", Ender(4))])
        return sample(sampler, spread=Spread(communicator=communicator, **spread), steps=6, **CALL)

    with pytest.raises(PowerCutError):
        InProcess(timeout=600).run(2, cut)

    def go_on(communicator):
        return run(toy_sampler(*WINDOWS), Spread(communicator=communicator, **spread), steps=6)

    for result in InProcess(timeout=600).run(3, go_on):
        assert torch.equal(result.latents, expected)
        (note,) = result.report.notes
        assert note.startswith("speeds of the ranks from step 6 on, as measured: ")


def test_speeds_reach_no_recipe():
    (auto, *_), _ = by_cost(COST, AUTO)
    (given_, *_), _ = by_cost(COST, {"speeds": (1, 1, 0.5)})
    assert auto.recipes == given_.recipes


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="speeds must be \"auto\" or a number for each rank, got 'fast'"):
        Spread(speeds="fast")
    with pytest.raises(ConfigError, match=r'speeds="auto" with exchange="dataflow": a dataflow is planned .* give a'):
        Spread(speeds="auto", exchange="dataflow")


def test_ranks_of_which_one_alone_would_measure_are_refused():
    def program(communicator):
        speeds = "auto" if communicator.rank == 1 else ()
        sample(toy_sampler(*ASG), spread=Spread(communicator=communicator, speeds=speeds))

    with pytest.raises(ProtocolError, match="plan: rank"):
        InProcess().run(2, program)
