"""DemoFusion and AccDiffusion as whole runs: what they are without their parts, and what a run keeps."""

import pytest
import torch
from attrs import evolve

from tiny import in_double, tiny_pipeline
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.loop import Loop
from vitrail.core.engine.resize import grown_latents, moments, phase_noise
from vitrail.core.geometry.views import Canvas
from vitrail.errors import ConfigError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

CALL = {"height": 128, "width": 128, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
METHODS = ["demofusion", "accdiffusion"]
LATE = 1  # stage of the further sizes
WITHOUT = {
    "residual": "stages.1.guidance=[]",
    "dilated": "stages.1.extra_views=[]",
    "jitter": "stages.1.patching.jitter=false",
    "renormalised": "stages.1.enter.renormalise=false",
}


class Seen:
    """The canvas after every step."""

    def __init__(self):
        self.latents = {}

    @hookimpl
    def vitrail_step_end(self, step, latents):
        self.latents[step.index] = latents.clone()


def sampler(pipe, method, *sets, plugins=()):
    return Sampler.from_pipeline(pipe, load_method(method, sets), plugins=plugins)


def latents(pipe, method, *sets, plugins=(), **call):
    return sampler(pipe, method, *sets, plugins=plugins)("a fox", **(CALL | call)).latents


def engine(pipe, method, *sets, **changes):
    names = ("height", "width", "num_inference_steps", "guidance_scale")
    options = {name: CALL[name] for name in names} | changes
    return sampler(pipe, method, *sets).engine(RunConfig(prompt="a fox", **options), 0)


def started(built, before):
    """The last size's grown picture and noise from the canvas before, as they are without any step."""
    phase = built.plan.phases[-1]
    clean = grown_latents(before, built.plan.phases[-2].canvas, phase.canvas)
    return clean, phase_noise(clean, phase, built.streams)


def test_parts_can_be_switched_off_one_by_one(pipe):
    sizes = [phase.picture for phase in engine(pipe, "demofusion", height=192).plan.phases]
    assert sizes == [(64, 40), (128, 80), (192, 128)]
    sizes = [phase.picture for phase in engine(pipe, "demofusion", "cascade.count=1", height=192).plan.phases]
    assert sizes == [(64, 40), (192, 128)]
    full = latents(pipe, "demofusion")
    for part in WITHOUT.values():
        assert not torch.equal(latents(pipe, "demofusion", part), full), part
    bare = latents(pipe, "demofusion", WITHOUT["residual"], WITHOUT["dilated"])
    weightless = latents(pipe, "demofusion", "stages.1.guidance.0.scale=0", "stages.1.extra_views.0.weight=0")
    assert torch.equal(weightless, bare)


def test_accdiffusion_without_its_two_changes_is_demofusion_with_windows_that_stay(pipe):
    sets = ["stages.1.prompting=shared", "stages.1.extra_views.0.patching.interaction=none"]
    plain = latents(pipe, "demofusion", "stages.1.patching.redraw=size")
    assert torch.equal(latents(pipe, "accdiffusion", *sets), plain)
    for one in (sets[:1], [sets[1], "stages.1.prompting.threshold=0.9"]):
        assert not torch.equal(latents(pipe, "accdiffusion", *one), plain), one


def test_without_its_mixes_it_is_multidiffusion_from_the_grown_and_noised_picture(pipe):
    seen = Seen()
    sets = (WITHOUT["residual"], WITHOUT["jitter"], WITHOUT["renormalised"], "stages.1.extra_views.0.weight=0.0")
    ours = latents(pipe, "demofusion", *sets, plugins=[("seen", seen)])
    clean, noise = started(engine(pipe, "demofusion", *sets), seen.latents[1])
    alone = engine(pipe, "multidiffusion")
    begin = alone.plan.phases[0].stepper.noised(clean, noise, 0)
    assert torch.equal(ours, Loop(alone).run(begin, lambda: False, lambda step, canvas, prediction: canvas).latents)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_of_the_training_size_is_sampled_directly(pipe, method):
    small = {"height": 64, "width": 64}
    assert torch.equal(latents(pipe, method, **small), latents(pipe, "direct", **small))


@pytest.mark.parametrize("method", METHODS)
def test_every_size_ends_with_the_mean_and_deviation_of_the_first(pipe, method):
    seen = Seen()
    ours, square = latents(pipe, method, plugins=[("seen", seen)]), Canvas(16, 16, 8)
    last, first = moments(ours, square), moments(seen.latents[1], evolve(square, height=8, width=8))
    torch.testing.assert_close(last, first, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moments(seen.latents[3], square), first, rtol=1e-2)


def test_where_the_dilated_views_want_padding_it_does_not_count(pipe):
    """17 x 25 cells at a stride of 3, and nothing of the one row and two columns that this lacks."""
    call, seen = {"height": 136, "width": 200}, Seen()
    ours = latents(pipe, "demofusion", plugins=[("seen", seen)], **call)
    wide, *_, first = (phase.canvas for phase in reversed(engine(pipe, "demofusion", **call).plan.phases))
    assert (wide.pad_height, wide.pad_width) == (1, 2) and (first.pad_height, first.pad_width) == (0, 0)
    assert ours.shape[-2:] == (18, 27)
    inner, wanted = ours[..., :17, :25], seen.latents[1]
    torch.testing.assert_close(inner.mean(), wanted.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inner.std(), wanted.std(), rtol=1e-4, atol=1e-4)


def test_with_a_full_skip_residual_the_last_step_alone_counts(pipe):
    """Each step begins where the grown picture has its noise, so all before the last are forgotten."""
    pipe = in_double(pipe)
    full = latents(pipe, "demofusion", WITHOUT["jitter"], "stages.1.guidance.0.power=0", num_inference_steps=4)
    last = latents(
        pipe,
        "demofusion",
        WITHOUT["jitter"],
        WITHOUT["residual"],
        "stages.1.enter.strength=[0.25]",
        num_inference_steps=4,
    )
    torch.testing.assert_close(full, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "weight"), [("demofusion", 0.5), ("accdiffusion", 0.5), ("demofusion", 1.0)])
def test_a_network_that_says_one_thing_ends_where_every_mix_of_views_does(method, weight):
    """A constant noise b takes clean + sigma noise to clean + sigma (noise - b), whatever the views."""
    pipe, seen = tiny_pipeline(), Seen()
    said = torch.tensor([0.3, -0.2, 0.1, 0.5])
    with torch.no_grad():
        pipe.unet.conv_out.weight.zero_()
        pipe.unet.conv_out.bias.copy_(said)
    sets = [WITHOUT["residual"], WITHOUT["renormalised"], f"stages.1.extra_views.0.weight={weight}"]
    ours = latents(pipe, method, *sets, plugins=[("seen", seen)], height=104, width=136)
    built = engine(pipe, method, *sets, height=104, width=136)
    begin = next(step for step in built.plan.steps() if step.phase == len(built.plan.phases) - 1)
    clean, noise = started(built, seen.latents[begin.index - 1])
    expected = clean + begin.sigma * (noise - said.view(1, 4, 1, 1))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_windows_stay_and_exchanges_go_on_at_one_size(pipe):
    built = engine(pipe, "accdiffusion", height=192)
    late = [step for step in built.plan.steps() if step.stage == LATE]
    by_phase = {phase: [built.plan.patches(step) for step in late if step.phase == phase] for phase in (1, 2)}
    for families in by_phase.values():
        assert all(main.views == families[0][0].views for main, _ in families)
        orders = [dilated.permutation for _, dilated in families]
        assert not torch.equal(orders[0], orders[1])
    moving = engine(pipe, "demofusion", height=192)
    views = {moving.plan.patches(step)[0].views for step in moving.plan.steps() if step.phase == 2}
    assert len(views) == 2


@pytest.mark.parametrize(("cut_at", "world_size"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_with_what_it_remembers(pipe, tmp_path, method, cut_at, world_size):
    """After the first size, and within the second."""
    keen = ["stages.1.prompting.threshold=0.9"] if method == "accdiffusion" else []  # so that texts differ
    path, whole = tmp_path / "run.ckpt", latents(pipe, method, *keen)

    class Cut:
        @hookimpl
        def vitrail_step_end(self, step):
            if step.index == cut_at:
                raise KeyboardInterrupt

    spread = {"checkpoint": path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        latents(pipe, method, *keen, plugins=[("cut", Cut())], spread=Spread(**spread))
    backbone = sampler(pipe, method, *keen).backbone

    def program(communicator):
        own = Sampler(backbone, load_method(method, keen), model="pipeline")
        return own("a fox", spread=Spread(communicator=communicator, **spread), **CALL).latents

    assert path.exists()
    assert all(torch.equal(ours, whole) for ours in InProcess(timeout=600).run(world_size, program))


@pytest.mark.parametrize(
    ("height", "width", "wrap"), [(144, 192, "y"), (192, 72, "xy"), (128, 96, "xy"), (64, 192, "x")]
)
def test_sizes_on_the_way_fit_one_stride_where_ends_meet(pipe, height, width, wrap):
    """An axis whose ends meet cannot be padded, and the stride of the views is that of the longer axis."""
    built = engine(pipe, "demofusion", height=height, width=width, wrap=wrap)
    assert built.plan.phases[-1].picture == (height, width) and len(built.plan.phases) > 1
    for phase in built.plan.phases:
        wrapped = {"x": phase.canvas.pad_width, "y": phase.canvas.pad_height}
        assert all(wrapped[axis] == 0 for axis in wrap)


def test_a_wanted_size_that_one_stride_does_not_fit_is_refused(pipe):
    with pytest.raises(ConfigError, match="a height of 128 pixels must be a multiple of 24"):
        engine(pipe, "demofusion", height=128, width=192, wrap="y")
