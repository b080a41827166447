"""The same picture, bit for bit, on any number of ranks."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods import EACH
from often import PROFILE, THOROUGH
from rank_programs import everything
from schedulers import new_scheduler
from tiny_families import FAMILIES
from toy import ASG, DETAIL, STRUCTURE, sample, toy_sampler
from vitrail.comm import Gloo, InProcess, Simulated
from vitrail.comm.backends.virtual_schedule import Fault, SeededSchedule
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CommAborted, ProtocolError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

RUN = RunConfig(prompt="", height=128, width=128, num_inference_steps=6)
RANKS = (2, 3, 4, 5, 8) if THOROUGH else (3, 8)
FEW = {"fast": (3,), "ci": (2, 3), "long": RANKS}[PROFILE]  # of real networks
BACKENDS = {"in-process": InProcess(timeout=600), "simulated": Simulated(timeout=600)}
APART = {**STRUCTURE, "patching": {"type": "lattice", "interaction": "none"}}  # needs no collective
SYNC = {**APART, "guidance": [{"type": "sync", "scale": 0.7, "form": "literal"}]}
STAGES = {
    "asg": ASG,
    "async apart": (APART, DETAIL),
    "sync apart": (SYNC, DETAIL),
    "apart, no guidance": ({**APART, "guidance": []}, DETAIL),
    "apart, guidance none": ({**APART, "guidance": ["none"], "masking": "none"}, DETAIL),
    "apart to the end": ({k: v for k, v in APART.items() if k != "until"},),
    "no warm-up": ({**APART, "guidance": [{"type": "async", "warmup_steps": 0}]}, DETAIL),
    "families": (
        {
            "patching": {"type": "windows", "overlap": 0.5},
            "fusion": "gaussian",
            "extra_views": [{"patching": {"type": "lattice"}, "fusion": "scatter", "weight": 0.3}],
        },
    ),
}


def on_ranks(backend, world_size, make_sampler, spread=None, **call):
    """Final latents by rank."""
    sampler = make_sampler()

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model=sampler.model)
        return sample(own, spread=Spread(communicator=communicator, **(spread or {})), **call)

    with torch.inference_mode():
        return backend.run(world_size, program)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stages", STAGES)
def test_e2_the_picture_does_not_depend_on_the_number_of_ranks(stages, backend):
    def make():
        return toy_sampler(*STAGES[stages])

    call = {"row_batch": 2, "guidance_scale": 2.0, "steps": 4}
    alone = sample(make(), **call)
    for world_size in RANKS:
        for latents in on_ranks(BACKENDS[backend], world_size, make, **call):
            assert torch.equal(latents, alone), world_size


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("row_batch", [1, 3, 8])
def test_e2_nor_does_it_with_micro_batches_that_divide_or_join_views(stages, row_batch):
    call = {"row_batch": row_batch, "guidance_scale": 2.0, "steps": 4}
    alone = sample(toy_sampler(*STAGES[stages]), **call)
    for latents in on_ranks(BACKENDS["simulated"], 3, lambda: toy_sampler(*STAGES[stages]), **call):
        assert torch.equal(latents, alone)


@pytest.mark.parametrize("name", EACH)
def test_e2_every_method_gives_the_same_picture_on_any_number_of_ranks(name, pipe):
    sampler = Sampler.from_pipeline(pipe, load_method(name))
    call = {"height": 72, "width": 136, "num_inference_steps": 2, "output_type": "pt", "row_batch": 2, "seed": 3}
    alone = sampler("a fox", **call).images[0]
    for backend in BACKENDS.values() if THOROUGH else [BACKENDS["in-process"]]:
        for world_size in FEW:

            def program(communicator):
                own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
                return own("a fox", spread=Spread(communicator=communicator), **call).images[0]

            with torch.inference_mode():
                for image in backend.run(world_size, program):
                    assert torch.equal(image, alone), world_size


@pytest.mark.parametrize(
    "name",
    [
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
    ],
)
def test_ranks_that_go_apart_gather_what_the_scheduler_remembers(name):
    def make():
        return toy_sampler(APART, DETAIL, scheduler=new_scheduler(name))

    alone = sample(make(), steps=7, row_batch=2)
    for latents in on_ranks(BACKENDS["in-process"], 3, make, steps=7, row_batch=2):
        assert torch.equal(latents, alone)


@pytest.mark.thorough
@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_e1_processes_give_the_same_pictures(world_size):
    threads = torch.get_num_threads()
    program = functools.partial(everything, [entry.name for entry in build_registry().entries("methods")], STAGES)
    expected = program()
    torch.set_num_threads(threads)
    found = Gloo(timeout=600).run(world_size, program)
    assert len(found) == world_size
    for pictures in found:
        assert pictures.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(pictures[name], expected[name])] == []


@given(seed=st.integers(0, 2**63 - 1), steps=st.permutations(range(6)))
@settings(max_examples=10)
def test_e4_what_is_drawn_depends_on_seed_and_step_alone(seed, steps):
    def draws(order):
        engine = toy_sampler(*ASG).engine(RUN, seed)
        return {index: engine.plan.patches(engine.plan.steps()[index])[0] for index in order}

    ordered, shuffled = draws(range(6)), draws(steps)
    for index, patches in ordered.items():
        assert shuffled[index].views == patches.views
        assert (patches.permutation is None) == (shuffled[index].permutation is None)
        if patches.permutation is not None:
            assert torch.equal(patches.permutation, shuffled[index].permutation)


def counts(stages, **options):
    """Collectives by stage on one of three ranks."""
    communicators = {}

    def program(communicator):
        communicators[communicator.rank] = communicator
        return sample(toy_sampler(*stages), steps=10, row_batch=2, spread=Spread(communicator=communicator), **options)

    with torch.inference_mode():
        BACKENDS["simulated"].run(3, program)
    spans = [span for span in communicators[0].trace.spans if span.lane == "comm"]
    return sum(span.name.startswith("all_gather") for span in spans)


def test_ranks_that_go_apart_need_no_collective_until_the_stage_ends():
    apart, together = counts((APART, DETAIL)), counts((STRUCTURE, DETAIL))
    start, end = 1, 1  # the comparisons of what runs mean, and of the last canvas
    windows = counts((DETAIL,)) - start - end - 5  # ten steps, of which five begin with a comparison: 1, 2, 3, 5, 9
    # A comparison before ranks part, and the canvas put together; of five steps four begin with a comparison.
    assert apart == start + 1 + 1 + windows / 2 + 4 + end
    assert together > apart


def test_somebody_who_looks_at_every_canvas_sees_it_whole():
    def watch(seen):
        def callback(sampler, index, timestep, state):
            seen.append(state["latents"].clone())

        return callback

    alone, shared = [], {}
    sample(toy_sampler(APART, DETAIL), callback_on_step_end=watch(alone))

    def program(communicator):
        seen = shared.setdefault(communicator.rank, [])
        sample(toy_sampler(APART, DETAIL), spread=Spread(communicator=communicator), callback_on_step_end=watch(seen))

    InProcess().run(2, program)
    assert all(torch.equal(a, b) for rank in (0, 1) for a, b in zip(alone, shared[rank], strict=True))


@given(
    seed=st.integers(0, 2**32),
    speeds=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    stages=st.sampled_from(list(STAGES)),
)
@settings(max_examples=10)
def test_e3_neither_delays_nor_the_plan_reach_the_picture(seed, speeds, stages):
    call = {"row_batch": 2, "steps": 4}
    alone = sample(toy_sampler(*STAGES[stages]), **call)
    backend = Simulated(seed=seed, latency=1.0, timeout=1e6)
    for latents in on_ranks(backend, 3, lambda: toy_sampler(*STAGES[stages]), {"speeds": speeds}, **call):
        assert torch.equal(latents, alone)


def test_ranks_that_mean_different_runs_are_told_before_any_model_call():
    def program(communicator):
        sampler = toy_sampler(DETAIL)
        steps = 4 + (communicator.rank == 2)
        sample(sampler, steps=steps, spread=Spread(communicator=communicator))

    with pytest.raises(ProtocolError, match=r"run: rank.? (0, 1 against rank 2|2 against ranks 0, 1)"):
        InProcess().run(3, program)


class Crash(SeededSchedule):
    """One rank dies at one of its calls."""

    rank, point = 1, 1

    def fault(self, rank, point):
        return Fault("crash") if (rank, point) == (self.rank, self.point) else None


@given(rank=st.integers(0, 2), point=st.integers(1, 60), stages=st.sampled_from(["asg", "async apart"]))
def test_f1_a_crash_anywhere_ends_every_rank_and_names_it(rank, point, stages):
    schedule = Crash(0)
    schedule.rank, schedule.point = rank, point

    def program(communicator):
        return sample(toy_sampler(*STAGES[stages]), steps=4, row_batch=2, spread=Spread(communicator=communicator))

    with torch.inference_mode():
        outcome = Simulated(timeout=100).simulate(3, program, schedule)
    if outcome.abort is None:  # it ended before that call, or the others had no more need of it
        assert {*outcome.results, rank} == {0, 1, 2}
        return
    others = {r: error for r, error in outcome.errors.items() if r != rank}
    assert set(others) == {0, 1, 2} - {rank} - set(outcome.results)
    assert all(isinstance(error, CommAborted) and error.culprit == rank for error in others.values())
    assert math.isfinite(outcome.makespan)


@pytest.mark.parametrize("family", FAMILIES)
def test_e2_every_family_gives_the_same_picture_on_three_ranks(family):
    sampler = Sampler.from_pipeline(FAMILIES[family](), "cutdiffusion" if family == "sd3" else "asg")
    call = {"height": 128, "width": 136, "num_inference_steps": 2, "output_type": "pt", "row_batch": 2, "seed": 3}
    alone = sampler("a fox", **call).images[0]

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **call).images[0]

    with torch.inference_mode():
        for image in BACKENDS["in-process"].run(3, program):
            assert torch.equal(image, alone)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_communicator_that_is_used_again_traces_each_run_by_itself(world_size):
    """Both runs compute as much, and nothing of the first is told, or kept, with the second."""
    sampler = toy_sampler(*ASG)

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model=sampler.model)
        traces, kept = [], []
        for _ in range(2):
            communicator.barrier()
            result = own("", height=128, width=128, num_inference_steps=4, spread=Spread(communicator=communicator))
            traces.append(result.traces)
            kept.append(sum(span.lane != "wait" for span in communicator.trace.spans))
        return traces, kept

    with torch.inference_mode():
        told = BACKENDS["in-process"].run(world_size, program)
    for traces, kept in told:
        first, second = ([rows_of(trace) for trace in run] for run in traces)
        assert first == second and len(first) == world_size and all(first)
        assert all(
            max(s.end for s in one.spans) <= min(s.begin for s in two.spans) for one, two in zip(*traces, strict=True)
        )
        assert kept[0] == kept[1]


def rows_of(trace):
    """Rows that a rank computed at every step."""
    return [(span.args["step"], span.args["rows"]) for span in trace.spans if "rows" in span.args]
