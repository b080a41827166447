"""Stages without a barrier between steps: the same bits as with one, on any number of ranks, and the same endings."""

import functools

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import Ender, PowerCutError
from test_ranks import BACKENDS, Crash, on_ranks

from often import every
from rank_programs import every_toy
from schedulers import new_scheduler
from toy import DETAIL, STRUCTURE, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import Gloo, InProcess, Simulated
from vitrail.comm.dataflow_exchange import HEEDED
from vitrail.core.engine.dataflow_stage import DataflowStage
from vitrail.errors import CommAborted, ConfigError, DriftError, VitrailError
from vitrail.plugins.fusion.averages import Average
from vitrail.sampling.sampler import Sampler, Spread

JITTER = {"patching": {"type": "windows", "overlap": 0.5, "jitter": True}, "fusion": {"type": "gaussian"}}
STAGES = {
    "multidiffusion": ({"patching": {"type": "windows", "overlap": 0.5}, "fusion": "average"},),
    "mixture": (JITTER,),
    "asg": (STRUCTURE, DETAIL),
    "spotdiffusion": ({"patching": {"type": "windows", "overlap": 0.0, "grid": "moving"}, "fusion": "average"},),
    "context": ({"patching": {"type": "windows", "size": 5, "overlap": 0.0, "context": 0.6}, "fusion": "paste"},),
    "interval": ({**DETAIL, "guidance_interval": [0.3, 5.0]},),
    "leaving": ({"patching": {**JITTER["patching"], "border": "leave"}, "fusion": "average"},),
}
CALL = {"row_batch": 2, "guidance_scale": 2.0, "steps": 5, "size": 32}


FLOW = {"exchange": "dataflow"}


@pytest.fixture
def flowing(monkeypatch):
    """Steps that were done as a dataflow, by rank."""
    seen, original = {}, DataflowStage.run

    def run(self, engine, step, done):
        seen.setdefault(self.exchange.communicator.rank, []).append(step.index)
        return original(self, engine, step, done)

    monkeypatch.setattr(DataflowStage, "run", run)
    return seen


@pytest.mark.parametrize("stages", every(2, STAGES))
@pytest.mark.parametrize("row_batch", [1, 2, 3])
def test_one_two_and_three_ranks_give_the_bits_that_a_barrier_gives(stages, row_batch, flowing):
    def make():
        return toy_sampler(*STAGES[stages])

    call = CALL | {"row_batch": row_batch}
    expected = sample(make(), **call)
    assert torch.equal(sample(make(), spread=Spread(**FLOW), **call), expected)
    assert all(torch.equal(latents, expected) for latents in on_ranks(BACKENDS["in-process"], 2, make, **call))
    assert not flowing, "neither one rank nor ranks that were not asked to do"
    for backend in BACKENDS.values():
        for world in (2, 3):
            assert all(torch.equal(latents, expected) for latents in on_ranks(backend, world, make, FLOW, **call))
    assert set(flowing) == {0, 1, 2}


@pytest.mark.parametrize(
    "name",
    every(
        2,
        [
            "UniPCMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "HeunDiscreteScheduler",
            "DDPMScheduler",
            "SASolverScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
        ],
    ),
)
def test_what_schedulers_remember_goes_with_the_cells(name, flowing):
    def make():
        return toy_sampler(JITTER, scheduler=new_scheduler(name))

    expected = sample(make(), **CALL)
    backend = Simulated(seed=2, latency=1.0, timeout=1e6)
    assert all(torch.equal(latents, expected) for latents in on_ranks(backend, 3, make, FLOW, **CALL))
    assert flowing


@given(seed=st.integers(0, 2**32), speeds=st.lists(st.floats(0.1, 10), min_size=2, max_size=4))
@settings(max_examples=5)
def test_neither_delays_nor_speeds_reach_the_picture(seed, speeds):
    expected = sample(toy_sampler(JITTER), **CALL)
    backend = Simulated(seed=seed, latency=1.0, timeout=1e6)
    for latents in on_ranks(backend, len(speeds), lambda: toy_sampler(JITTER), {"speeds": speeds, **FLOW}, **CALL):
        assert torch.equal(latents, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("world", [2, 3])
def test_processes_give_the_same_pictures(world):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    program = functools.partial(every_toy, STAGES, **FLOW)
    expected = program(None)
    torch.set_num_threads(threads)
    for pictures in Gloo(timeout=600).run(world, program):
        assert [name for name in expected if not torch.equal(pictures[name], expected[name])] == []


def test_a_canvas_is_whole_wherever_it_is_kept(tmp_path, flowing):
    """A checkpoint every second step, taken up on another number of ranks."""
    expected = sample(toy_sampler(JITTER), **CALL)
    for before, after in ((3, 1), (1, 3), (2, 3)):
        path = tmp_path / f"{before} {after}.ckpt"
        ender = (("ender", Ender(3)),)

        def cut(communicator, path=path, ender=ender):
            spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=2, **FLOW)
            return sample(toy_sampler(JITTER, plugins=ender), spread=spread, **CALL)

        with pytest.raises(PowerCutError):
            InProcess(timeout=600).run(before, cut)
        spread = {"checkpoint": path, "checkpoint_every": 2, **FLOW}
        found = on_ranks(InProcess(timeout=600), after, lambda: toy_sampler(JITTER), spread, **CALL)
        assert all(torch.equal(latents, expected) for latents in found)
    assert flowing


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_stop_together_with_a_whole_canvas_and_go_on_from_it(world, tmp_path, flowing):
    call = {**CALL, "steps": 9}
    expected, path = sample(toy_sampler(JITTER), **call), tmp_path / "run.ckpt"
    spread = {"checkpoint": path, "checkpoint_every": 100, **FLOW}
    options = {"height": 256, "width": 256, "num_inference_steps": 9, "guidance_scale": 2.0, "row_batch": 2}

    def program(communicator):
        stopper = Stopper(at=1 if communicator.rank == 0 else 99)
        sampler = stopper.sampler = toy_sampler(JITTER, plugins=(("stopper", stopper),))
        own = Spread(communicator=communicator, **spread)
        result = sampler("anything", output_type="latent", spread=own, **options)
        return result.report.interrupted, result.report.steps, result.latents

    found = InProcess(timeout=600).run(world, program)
    interrupted, steps, latents = found[0]
    assert interrupted and steps <= 2 + (world > 1) * (HEEDED + 1)
    assert all(each[:2] == (interrupted, steps) and torch.equal(each[2], latents) for each in found)
    for latents in on_ranks(InProcess(timeout=600), 2, lambda: toy_sampler(JITTER), spread, **call):
        assert torch.equal(latents, expected)
    assert flowing


class Stopper:
    """Asks a sampler to stop after a step."""

    sampler = None

    def __init__(self, at):
        self.at = at

    @hookimpl
    def vitrail_step_end(self, step):
        if step.index == self.at:
            self.sampler.interrupt()


@given(rank=st.integers(0, 2), point=st.integers(1, 80))
@settings(max_examples=12)
def test_a_crash_anywhere_ends_every_rank_and_names_it(rank, point):
    schedule = Crash(0)
    schedule.rank, schedule.point = rank, point

    def program(communicator):
        return sample(toy_sampler(JITTER), spread=Spread(communicator=communicator, **FLOW), **CALL)

    with torch.inference_mode():
        outcome = Simulated(timeout=100).simulate(3, program, schedule)
    if outcome.abort is None:
        assert {*outcome.results, rank} == {0, 1, 2}
        return
    others = {r: error for r, error in outcome.errors.items() if r != rank}
    assert set(others) == {0, 1, 2} - {rank} - set(outcome.results)
    assert all(isinstance(error, CommAborted) and error.culprit == rank for error in others.values())


@frozen
class DriftingAverage(Average):
    """A fusion that goes its own way on one rank, from a step on; it says that it is cellwise."""

    def fuse(self, step, views, prediction, latents):
        import threading

        fused = super().fuse(step, views, prediction, latents)
        return fused + 1e-6 * (step.index >= 2 and threading.current_thread().name == "rank-1")


def test_ranks_that_drift_apart_are_told_with_the_first_step_and_the_strategy(flowing):
    sampler = toy_sampler(DETAIL)
    drifting = [evolve(stage, fusion=DriftingAverage()) for stage in sampler.composition.stages]

    def program(communicator):
        own = Sampler(sampler.backbone, evolve(sampler.composition, stages=drifting), model=sampler.model)
        return sample(own, spread=Spread(communicator=communicator, **FLOW), **CALL)

    with torch.inference_mode(), pytest.raises(DriftError, match=r"step 3 of 5 .*DriftingAverage.*rank 1"):
        InProcess(timeout=600).run(3, program)
    assert flowing


def test_somebody_who_looks_at_every_canvas_sees_it_whole(flowing):
    seen = {}

    def watch(rank):
        def callback(sampler, index, timestep, state):
            seen.setdefault(rank, []).append(state["latents"].clone())

        return callback

    sample(toy_sampler(JITTER), callback_on_step_end=watch("alone"), **CALL)

    def program(communicator):
        spread = Spread(communicator=communicator, **FLOW)
        sample(toy_sampler(JITTER), spread=spread, callback_on_step_end=watch(communicator.rank), **CALL)

    InProcess(timeout=600).run(2, program)
    assert not flowing
    assert all(torch.equal(a, b) for rank in (0, 1) for a, b in zip(seen["alone"], seen[rank], strict=True))


def test_ranks_of_unlike_exchange_are_refused():
    def program(communicator):
        kind = "dataflow" if communicator.rank else "barrier"
        return sample(toy_sampler(JITTER), spread=Spread(communicator=communicator, exchange=kind), **CALL)

    with torch.inference_mode(), pytest.raises(VitrailError, match="exchange"):
        InProcess(timeout=600).run(2, program)
    with pytest.raises(ConfigError, match="exchange must be one of barrier, dataflow, got 'flow'"):
        Spread(exchange="flow")


def test_only_cells_that_are_fused_are_compared_and_searched():
    """Where views are missing a fusion may say anything, and which are missing differs by rank."""
    sampler, seen = toy_sampler({**JITTER, "fusion": "average"}), []

    @frozen
    class Telling(Average):
        def fuse(self, step, views, prediction, latents):
            late = torch.zeros(latents.shape[-2:], dtype=torch.bool)
            for view, output in zip(views, prediction.model_output, strict=True):
                if not bool(output.any()):
                    view.write(late, torch.ones(view.shape, dtype=torch.bool))
            seen.append(bool(late.any()))
            return Average.fuse(self, step, views, prediction, latents).masked_fill(late, float("nan"))

    stages = [evolve(stage, fusion=Telling()) for stage in sampler.composition.stages]

    def program(communicator):
        own = Sampler(sampler.backbone, evolve(sampler.composition, stages=stages), model=sampler.model)
        return sample(own, spread=Spread(communicator=communicator, **FLOW), **CALL)

    expected = sample(sampler, **CALL)
    with torch.inference_mode():
        found = Simulated(seed=3, latency=1.0, timeout=1e6).run(3, program)
    assert any(seen) and all(torch.equal(latents, expected) for latents in found)
