"""Pictures whose edges meet: nothing knows where the canvas begins, and ranks agree on it."""

import functools

import pytest
import torch
from attrs import evolve

from methods import EACH
from tiny import in_double
from toy import composition, toy_sampler
from toy import sample as sample_toy
from vitrail.backbones.vae.decoding import decode
from vitrail.backbones.vae.strip_ops import Alone
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.independent_ranks import are_independent
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.experiments.run.cell_run import edges
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread
from vitrail.testing import make_step

STRIDE = 4  # cells, of half-overlapping windows of the tiny network
RUN = {"height": 64, "width": 192, "num_inference_steps": 3, "output_type": "latent"}
APART = {"patching": {"type": "lattice", "interaction": "none"}, "masking": "none", "fusion": "scatter"}


def windows(**options):
    return composition({"patching": {"type": "windows", "overlap": 0.5, **options}, "fusion": "average"})


def noise(height, width, seed=0):
    return Streams(seed).normal((1, 4, height, width), "noise")


@pytest.mark.parametrize(
    ("wrap", "height", "width", "axis", "overlap"),
    [("x", 64, 160, 3, 0.5), ("x", 64, 96, 3, 0.75), ("y", 128, 64, 2, 0.5), ("xy", 96, 96, 3, 0.5)],
)
def test_latents_rolled_by_a_stride_end_as_rolled_latents(pipe, wrap, height, width, axis, overlap):
    """Up to the last bits: windows are added up in another order."""
    sampler = Sampler.from_pipeline(in_double(pipe), windows(overlap=overlap))
    call = RUN | {"height": height, "width": width}
    start, stride = noise(height // 8, width // 8), round(8 * (1 - overlap))
    plain = sampler("a fox", latents=start, wrap=wrap, **call).latents
    for strides in (1, 2):
        rolled = sampler("a fox", latents=start.roll(strides * stride, axis), wrap=wrap, **call).latents
        torch.testing.assert_close(rolled, plain.roll(strides * stride, axis))
    edged = sampler("a fox", latents=start, **call).latents
    other = sampler("a fox", latents=start.roll(stride, axis), **call).latents
    assert (other - edged.roll(stride, axis)).abs().max() > 0.1


def test_a_view_that_goes_on_over_the_edge_has_its_border_where_it_ends(pipe):
    sampler = Sampler.from_pipeline(pipe, windows(overlap=0.25))
    run = RunConfig(prompt="a fox", height=64, width=144, num_inference_steps=2)
    assert edges(sampler, evolve(run, wrap="x")) == ((), tuple(8 * cell for cell in (2, 6, 8, 12, 14)))
    assert all(0 < column < 144 for column in edges(sampler, run)[1])


def test_the_picture_rolls_with_the_latents(pipe):
    pipe = in_double(pipe)
    sampler = Sampler.from_pipeline(pipe, windows())
    start = noise(8, 24)
    pictures = []
    for latents in (start, start.roll(STRIDE, 3)):
        final = sampler("a fox", latents=latents, wrap="x", **RUN).latents
        pictures.append(decode(pipe.vae, final, 8, Alone(), "x"))
    torch.testing.assert_close(pictures[1], pictures[0].roll(8 * STRIDE, 3))


@pytest.mark.parametrize("method", EACH)
def test_every_method_runs_around_the_edges_and_is_the_same_on_any_number_of_ranks(pipe, method):
    backbone = Sampler.from_pipeline(pipe, "direct").backbone
    call = RUN | {"height": 96, "width": 96, "num_inference_steps": 2, "row_batch": 2, "wrap": "xy", "seed": 3}

    def program(communicator):
        sampler = Sampler(backbone, load_method(method), model="pipeline")
        return sampler("a fox", spread=Spread(communicator=communicator), **call).latents

    alone = Sampler(backbone, load_method(method), model="pipeline")("a fox", **call).latents
    assert alone.isfinite().all()
    assert all(torch.equal(latents, alone) for latents in InProcess(timeout=600).run(3, program))


def test_a_network_that_pads_with_zeros_sees_another_edge_at_every_step(pipe):
    """Its convolutions would draw a seam where the edge always lies; what it sees is the canvas, turned."""
    sampler = Sampler.from_pipeline(pipe, "direct")
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0].clone()), with_kwargs=True)
    try:
        sampler("a fox", wrap="x", guidance_scale=1.0, row_batch=99, **RUN | {"num_inference_steps": 6})
    finally:
        hook.remove()
    engine = sampler.engine(RunConfig(prompt="", height=64, width=192, num_inference_steps=6, wrap="x"), 0)
    rolls = [engine.plan.patches(step)[0].views[0].roll for step in engine.plan.steps() if step.stage == 0]
    assert len(set(rolls)) == len(rolls) > 2 and {down for down, _ in rolls} == {0}
    scaled = engine.plan.phases[0].stepper.scale(noise_of(engine) * engine.plan.phases[0].stepper.init_noise_sigma, 0)
    patches = engine.plan.patches(engine.plan.steps()[0])[0]
    if patches.permutation is None:
        expected = patches.views[0].rolled.read(scaled)
        assert torch.equal(seen[0][:1], expected) and not torch.equal(expected, patches.views[0].read(scaled))


def noise_of(engine):
    return engine.streams.normal((1, 4, engine.plan.canvas.height, engine.plan.canvas.width), "initial-latents")


@pytest.mark.parametrize("guidance", [[], ["sync"], [{"type": "async", "scale": 0.7}]], ids=str)
def test_lattices_on_a_ring_need_no_collective_since_their_cells_stay(guidance):
    method = composition(APART | {"guidance": guidance})
    canvas = Canvas(16, 24, 8, wrap="xy")
    stage, steps = method.stages[0], [make_step(index) for index in range(4)]
    every = [stage.patching.patch(step, canvas, 4, Streams(0)) for step in steps]
    assert are_independent(stage, canvas, every)
    sampler = toy_sampler(APART | {"guidance": guidance})
    call = {"wrap": "xy", "row_batch": 1, "guidance_scale": 2.0}
    alone = sample_toy(sampler, **call)

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="analytic")
        return sample_toy(own, spread=Spread(communicator=communicator), **call)

    for count in (2, 3, 5):
        assert all(torch.equal(latents, alone) for latents in InProcess(timeout=600).run(count, program))


def test_views_that_move_from_step_to_step_cannot_do_without():
    """Windows side by side part the canvas at every step, each time elsewhere."""
    canvas = Canvas(8, 24, 8, wrap="x")
    moving = composition(APART | {"patching": {"type": "windows", "overlap": 0.0, "jitter": True}})
    stage = moving.stages[0]
    still = [stage.patching.patch(make_step(index), canvas, 4, Streams(0)).canonical() for index in range(3)]
    assert are_independent(stage, canvas, still)
    spans = [evolve(view.horizontal, start=(view.horizontal.start + 3) % 24) for view in still[1].views]
    moved = evolve(still[1], views=[View(Span(0, 8), span) for span in spans])
    assert not are_independent(stage, canvas, [still[0], moved.canonical()])


@pytest.mark.parametrize("options", [{"width": 500}, {"width": 500, "height": 250, "wrap": "xy"}, {"width": 208}])
def test_sizes_that_cannot_wrap_are_refused_before_anything_is_computed(pipe, options):
    sampler = Sampler.from_pipeline(pipe, "asg")
    calls = []
    hook = pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ConfigError, match=r"wrap 'xy?': a \w+ of \d+ pixels must be a multiple of \d+") as told:
            sampler("a fox", **RUN | {"wrap": "x"} | options)
    finally:
        hook.remove()
    assert len(str(told.value).splitlines()) == (2 if "height" in options else 1)
    assert not calls
    sampler("a fox", **RUN | options | {"wrap": "none"})


def test_a_replaced_encoder_is_no_matter_for_the_decoder_of_several_ranks(pipe, monkeypatch):
    monkeypatch.setattr(pipe.vae, "encode", functools.partial(pipe.vae.encode))
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    call = RUN | {"height": 128, "width": 128, "num_inference_steps": 1, "wrap": "x", "output_type": "pt"}
    alone = sampler("a fox", **call).images[0]

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **call).images[0]

    assert all(torch.equal(image, alone) for image in InProcess(timeout=600).run(2, program))
