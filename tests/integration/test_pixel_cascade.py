"""Methods that grow a picture in pixels: at any size, on any ranks, from any checkpoint, around edges that meet."""

import pytest
import torch
from attrs import evolve

from often import every
from tiny_families import FAMILIES
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.resize import bicubic, sharpened
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams
from vitrail.sampling.methods import load_method
from vitrail.sampling.pixels import MARGIN, Pixels
from vitrail.sampling.sampler import Sampler, Spread

METHODS = ("ap-ldm", "diffusehigh")
CALL = {"height": 150, "width": 200, "num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "pt", "seed": 3}
SHORT = {"ap-ldm": "stages.1.enter.strength=[0.3, 0.4]", "diffusehigh": "stages.1.enter.strength=[0.4]"}  # of 10 steps


class PowerCutError(Exception):
    """Ends a run from outside."""


class Probe:
    """Keeps what every step left, and may end the run after one."""

    def __init__(self, end=None):
        self.steps, self.starts, self.end = [], {}, end

    @hookimpl
    def vitrail_step_end(self, step, latents):
        self.steps.append((step, latents))
        if step.index == self.end:
            raise PowerCutError

    @hookimpl(wrapper=True)
    def vitrail_guide(self, step, scene):
        self.starts[step.phase] = scene.start
        return (yield)


def sampler_of(pipe, method, plugins=()):
    return Sampler.from_pipeline(pipe, load_method(method, [SHORT[method]]), plugins=plugins)


@pytest.mark.parametrize("method", METHODS)
def test_the_picture_has_the_wanted_size_and_three_ranks_make_the_same(pipe, method):
    sampler = sampler_of(pipe, method)
    alone = sampler("a fox", **CALL).images[0]
    assert alone.shape == (3, 150, 200)
    assert [phase.picture for phase in sampler.engine(RunConfig(prompt="", height=150, width=200), 0).plan.phases][
        1:
    ] != []

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **CALL).images[0]

    with torch.inference_mode():
        assert all(torch.equal(image, alone) for image in InProcess(timeout=600).run(3, program))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("before", "after"), every(3, [(3, 1), (1, 1), (1, 2)]))
def test_a_run_goes_on_in_the_middle_of_a_later_size(pipe, tmp_path, method, before, after):
    path, probe = tmp_path / "run.ckpt", Probe()
    whole = sampler_of(pipe, method, [("probe", probe)])("a fox", **CALL)
    last = [step for step, _ in probe.steps if step.phase == probe.steps[-1][0].phase]
    assert last[0].phase > 0 and len(last) == 4
    sampler = sampler_of(pipe, method)

    def cut(communicator):
        spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=1)
        return sampler.again([("probe", Probe(last[2].index))])("a fox", spread=spread, **CALL)

    def go_on(communicator):
        spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=1)
        seen = Probe()
        result = sampler.again([("probe", seen)])("a fox", spread=spread, **CALL)
        return [step.index for step, _ in seen.steps], result

    with torch.inference_mode():
        with pytest.raises(PowerCutError):
            InProcess(timeout=600).run(before, cut)
        for indices, result in InProcess(timeout=600).run(after, go_on):
            assert indices == [last[2].index, last[3].index]
            assert torch.equal(result.images[0], whole.images[0])
            assert (result.report.vae_decodes, result.report.vae_encodes) == (
                whole.report.vae_decodes,
                whole.report.vae_encodes,
            )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [2, 11])
def test_a_run_that_is_stopped_shows_a_picture_of_the_wanted_size(pipe, method, at):
    def stop(sampler, index, timestep, state):
        if index == at:
            sampler.interrupt()

    result = sampler_of(pipe, method)("a fox", callback_on_step_end=stop, **CALL)
    assert result.report.interrupted and result.report.steps == at + 1
    assert result.images[0].shape == (3, 150, 200) and bool(result.images[0].isfinite().all())


@pytest.mark.parametrize(("wanted", "strengths"), [(128, [2]), (256, [1, 2]), (512, [1, 1, 2])])
def test_strengths_of_ap_ldm_are_of_the_last_sizes(pipe, wanted, strengths):
    """A fifth of the steps for the last size, a tenth for those before it."""
    engine = Sampler.from_pipeline(pipe, "ap-ldm").engine(
        RunConfig(prompt="", height=wanted, width=wanted, num_inference_steps=10), 0
    )
    phases = [step.phase for step in engine.plan.steps()]
    assert [phases.count(number + 1) for number in range(len(strengths))] == strengths and phases.count(0) == 10


@pytest.mark.parametrize("method", METHODS)
def test_every_scheduler_begins_a_size_on_the_grown_picture_with_its_noise(pipe, method):
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"):
        engine = sampler_of(pipe, method).engine(RunConfig(prompt="", scheduler=name, num_inference_steps=10), 0)
        phase = engine.plan.phases[-1]
        clean, noise = (Streams(0).normal((1, 4, 8, 8), each) for each in ("clean", "noise"))
        first = next(step for step in engine.plan.steps() if step.phase == phase.number)
        assert first.phase_step == phase.first > 0
        expected = first.alpha * clean + first.sigma * noise
        noised = phase.stepper.noised(clean, noise, phase.first)
        torch.testing.assert_close(noised, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clip", ["decoded", "resized"])
def test_what_a_size_begins_with(family, clip):
    """The picture of the size before, decoded without its padding, grown, encoded with padding of its own."""
    probe = Probe()
    sharpen, edges = (1.0, "mirrored") if clip == "decoded" else (0.0, "repeated")
    method = load_method(
        "diffusehigh", ["cascade.count=1", f"stages.1.enter.sharpen={sharpen}", f"stages.1.enter.edges={edges}"]
    )
    enter = evolve(method.stages[1].enter, clip=clip)
    method = evolve(method, stages=[method.stages[0], evolve(method.stages[1], enter=enter)])
    sampler = Sampler.from_pipeline(FAMILIES[family](), method, plugins=[("probe", probe)])
    config = RunConfig(prompt="a fox", height=150, width=100, num_inference_steps=4)
    engine = sampler.engine(config, 0)
    sampler.run(config, output_type="latent")
    (last, latents), start = [each for each in probe.steps if each[0].phase == 0][-1], probe.starts[1]
    assert last.next_sigma == 0.0
    vae = engine.guidance.vae
    with torch.inference_mode():
        before, after = engine.plan.phases
        decoded = vae.decode(latents, before.canvas, clip == "decoded")
        picture = sharpened(bicubic(decoded, (150, 100), after.canvas), sharpen, after.canvas, edges)
        assert torch.equal(start.picture, picture)
        assert torch.equal(start.clean, vae.encode(picture, after.canvas))
    assert start.clean.shape[-2:] == (after.canvas.height, after.canvas.width)
    assert start.clean.dtype == start.picture.dtype == torch.float32


def test_pictures_of_a_batch_are_their_own(pipe):
    backbone = Sampler.from_pipeline(pipe, "direct").backbone
    sampler = Sampler.from_pipeline(pipe, "direct")
    pixels = sampler.engine(RunConfig(prompt=""), 0).guidance.vae
    assert isinstance(pixels, Pixels) and pixels.backbone is not backbone
    canvas = Canvas.of_picture(60, 90, 8, 8).padded(5, 7)
    latents = Streams(0).normal((2, 4, canvas.height, canvas.width), "latents")
    with torch.inference_mode():
        both = pixels.decode(latents, canvas)
        assert both.shape == (2, 3, 60, 90) and both.min() >= 0 and both.max() <= 1
        assert torch.equal(both[1:], pixels.decode(latents[1:], canvas))
        loud = [pixels.decode(20 * latents, canvas, clip) for clip in (True, False)]
        assert torch.equal(loud[0], loud[1].clamp(0, 1)) and loud[1].max() > 1.1
        again = pixels.encode(2 * both - 1, canvas)
        assert again.shape == latents.shape
        assert torch.equal(again[:1], pixels.encode(2 * both[:1] - 1, canvas))


def test_an_encoded_picture_has_hardly_a_seam_where_its_edges_meet(pipe):
    """Up to the statistics of normalisation, which what is shown twice shifts a little."""
    pixels = Sampler.from_pipeline(pipe, "direct").engine(RunConfig(prompt=""), 0).guidance.vae
    picture = 2 * Streams(0).uniform((1, 3, 64, 256), "picture") - 1
    errors = {}
    with torch.inference_mode():
        for wrap in ("none", "x"):
            canvas = Canvas.of_picture(64, 256, 8, 8, wrap)
            rolled = pixels.encode(picture.roll(128, -1), canvas)
            errors[wrap] = float((rolled - pixels.encode(picture, canvas).roll(16, -1)).abs().max())
    assert MARGIN == 16 and errors["x"] < 0.2 * errors["none"]


@pytest.mark.parametrize(("method", "told"), [("ap-ldm", None), ("diffusehigh", (64, 64))])
def test_the_network_is_told_the_size_of_the_moment_or_the_training_size(method, told):
    pipe, seen = FAMILIES["sdxl"](), {}

    def keep(_, args, kwargs):
        ids = kwargs["added_cond_kwargs"]["time_ids"]
        seen.setdefault(tuple(8 * side for side in args[0].shape[-2:]), set()).update(map(tuple, ids.int().tolist()))

    hook = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    sampler = sampler_of(pipe, method)
    config = RunConfig(prompt="a fox", height=128, width=192, num_inference_steps=5)
    try:
        sampler.run(config, output_type="latent")
    finally:
        hook.remove()
    sizes = [phase.picture for phase in sampler.engine(config, 0).plan.phases]
    assert seen == {size: {(*(told or size), 0, 0, *(told or size))} for size in sizes} and len(seen) > 1
