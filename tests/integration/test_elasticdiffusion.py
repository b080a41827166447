"""ElasticDiffusion, and what it brought: branches apart, repeated timesteps, sizes as multiples, backgrounds."""

import pytest
import torch
from test_checkpoint import Ender, PowerCutError

from adapters import with_control
from methods import METHODS
from schedulers import new_scheduler
from tiny_families import FAMILIES
from toy import DETAIL, coloured_sampler, composition, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CapabilityError, ConfigError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

METHOD = "elasticdiffusion"
CALL = {"height": 128, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
RUN = RunConfig(prompt="a fox", height=128, width=96, num_inference_steps=3, guidance_scale=3.0, row_batch=2)
DIRECTION = {"type": "direction", "resampling": 3, "redraw": 1.0, "pull": 0.0, "pad": "none"}
BARE = {"patching": "whole", "fusion": "average", "guidance": [DIRECTION]}
REPEAT = {"repeat": {"times": 2, "guidance_factor": 0.5}}
WITHOUT = ["stages.0.repeat.times=0", "stages.0.guidance.0.resampling=0", "stages.0.guidance.0.pull=0"]


def latents(pipe, method, *sets, **call):
    return Sampler.from_pipeline(pipe, load_method(method, sets))("a fox", **(CALL | call)).latents


def test_without_its_parts_a_picture_of_the_training_size_is_direct_bit_for_bit(pipe):
    """One row a forward, since more may be rounded otherwise."""
    call = {"height": 64, "width": 64, "row_batch": 1, "guidance_rescale": 0.3}
    plain = latents(pipe, "direct", **call)
    assert torch.equal(latents(pipe, METHOD, *WITHOUT, **call), plain)
    assert torch.equal(latents(pipe, METHOD, *WITHOUT[::2], **call), plain), "every copy is the picture itself"
    for part in WITHOUT[::2]:
        own = [each for each in WITHOUT if each != part]
        assert not torch.equal(latents(pipe, METHOD, *own, **call), plain)


@pytest.mark.parametrize("wrap", ["none", "xy"])
def test_cell_by_cell_it_is_plain_sampling_whatever_the_windows(wrap):
    """With all four cells of every block; views and copies of a network without neighbours say the same of a cell."""
    run = RunConfig(prompt="red", height=128, width=128, num_inference_steps=3, guidance_scale=3.0, wrap=wrap)
    plain = coloured_sampler({"patching": "whole", "fusion": "average"}).run(run).latents
    local = BARE | {"patching": {"type": "windows", "overlap": 0.0, "context": 0.5}, "fusion": "paste"}
    for stage in (BARE, local):
        torch.testing.assert_close(coloured_sampler(stage).run(run).latents, plain, rtol=1e-4, atol=1e-4)


def test_regions_are_mixed_by_the_cells_that_a_copy_shows():
    """Where the canvas is no multiple of the copy, too."""
    regions = [{"prompt": "blue", "box": (0.0, 0.0, 0.375, 1.0)}]
    stage = BARE | {"guidance": [DIRECTION | {"resampling": 0}]}
    for width in (128, 96):
        run = RunConfig(
            prompt="red", height=96, width=width, num_inference_steps=2, guidance_scale=3.0, regions=regions
        )
        sampler = coloured_sampler(stage)
        result = sampler.run(run)
        assert result.report.model_calls == sampler.plan(run).model_calls
        plain = coloured_sampler({"patching": "whole", "fusion": "average"}).run(run).latents
        edge = int(0.375 * width / 8)
        for part in (slice(0, edge - 2), slice(edge + 2, None)):
            torch.testing.assert_close(result.latents[..., part], plain[..., part], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(128, 128), (192, 96), (64, 64)])
def test_rows_and_encoded_colours_are_those_of_the_plan(pipe, size):
    sampler = Sampler.from_pipeline(pipe, METHOD)
    run = RunConfig(prompt="a fox", height=size[0], width=size[1], num_inference_steps=4, guidance_scale=3.0)
    result, plan = sampler.run(run), sampler.plan(run)
    assert result.report.model_calls == plan.model_calls
    assert result.report.vae_encodes == sampler.run_plan(run, 0).cost().encodes == (size[0] != size[1])
    copies, views = 1 if max(size) <= 64 else 8, {(192, 96): 3}.get(size, 1)
    assert plan.model_calls == 4 * 2 * copies + 3 * 2 + 7 * views, "three of four timesteps are done again"
    assert result.report.steps == 7


@pytest.mark.parametrize("stages", [(DETAIL | REPEAT,), (BARE | {"guidance": [DIRECTION | {"pull": 300.0}]} | REPEAT,)])
def test_a_run_that_ended_within_a_repeated_timestep_goes_on_on_any_number_of_ranks(tmp_path, stages):
    whole = coloured_sampler(*stages).run(RUN).latents
    for at, ranks in ((0, 1), (1, 3), (4, 1)):
        path = tmp_path / f"{at}.ckpt"

        def program(communicator, path=path, at=at):
            spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=1)
            return coloured_sampler(*stages, plugins=(("ender", Ender(at)),)).run(RUN, spread=spread)

        def again(communicator, path=path):
            spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=1)
            return coloured_sampler(*stages).run(RUN, spread=spread).latents

        with pytest.raises(PowerCutError):
            InProcess(timeout=60).run(ranks, program)
        assert all(torch.equal(found, whole) for found in InProcess(timeout=60).run(4 - ranks, again))


def test_times_of_zero_are_no_repeat_and_the_last_timestep_is_done_once():
    plain = toy_sampler(DETAIL).run(RUN)
    off = toy_sampler(DETAIL | {"repeat": {"times": 0, "guidance_factor": 0.5}}).run(RUN)
    assert torch.equal(off.latents, plain.latents)
    sampler = toy_sampler(DETAIL | REPEAT)
    steps = sampler.run_plan(RUN, 0).steps()
    assert [(step.phase_step, step.repeat) for step in steps] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    assert [step.index for step in steps] == [step.stage_step for step in steps] == list(range(7))
    assert {(step.num_steps, step.stage_num_steps) for step in steps} == {(7, 7)}
    plan = sampler.run_plan(RUN, 0)
    assert [plan.scale_at(step) for step in steps] == [3.0, 1.5, 1.5, 3.0, 1.5, 1.5, 3.0]


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"])
def test_schedulers_with_a_memory_are_refused_before_anything_is_computed(name):
    with pytest.raises(CapabilityError, match=rf"{name} remembers earlier steps"):
        toy_sampler(DETAIL | REPEAT, scheduler=new_scheduler(name)).plan(RUN)
    toy_sampler(DETAIL, scheduler=new_scheduler(name)).plan(RUN)


@pytest.mark.parametrize("method", [METHOD])
def test_what_the_network_is_told_of_sizes_is_four_times_the_picture(method):
    pipe, seen = FAMILIES["sdxl"](), []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
    )
    latents(pipe, method, num_inference_steps=2)
    hook.remove()
    assert {tuple(ids) for ids in seen} == {(512, 384, 0, 0, 512, 384)}


def test_branches_of_views_need_guidance_and_leave_nothing_ignored(pipe):
    with pytest.raises(ConfigError, match="Direction combines both branches of classifier-free guidance"):
        latents(pipe, METHOD, guidance_scale=1.0)
    for more, told in (
        ({"guidance_interval": [0.3, 5.0]}, "Direction combines both branches at every step"),
        ({"remember": True}, "remember: it is about how views see the prompt, and Direction has them asked without"),
        ({"guidance": [DIRECTION, "noise-damped"]}, "Direction and NoiseDamped both say how branches are combined"),
    ):
        with pytest.raises(ConfigError, match=told):
            composition(BARE | more)


def test_a_background_needs_a_vae():
    """The picture is narrower than it is high, and so is its copy."""
    stage = BARE | {"guidance": [DIRECTION | {"pad": "background"}]}
    with pytest.raises(CapabilityError, match=r"stage 1 fills up .* needs 'vae', .* set pad = \"none\""):
        toy_sampler(stage).plan(RUN)
    assert coloured_sampler(stage).run_plan(RUN, 0).cost().encodes == 1


def test_windows_over_a_background_show_the_network_pictures_of_their_size(pipe):
    """Windows of 12 cells on a picture of 16 x 8."""
    shapes, call = [], {"height": 128, "width": 64}
    windows = "stages.0.patching={type='windows', size=12, pad='background'}"
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[-2:])))
    narrow = latents(pipe, "multidiffusion", windows, **call)
    hook.remove()
    assert narrow.shape[-2:] == (16, 8) and set(shapes) == {(12, 12)}
    cut = windows.replace(", pad='background'", "")
    assert not torch.equal(narrow, latents(pipe, "multidiffusion", cut, **call))
    wide = {"height": 128, "width": 96}
    same = latents(pipe, "multidiffusion", windows, **wide)
    assert torch.equal(same, latents(pipe, "multidiffusion", cut, **wide)), "no axis is shorter than a window"


def test_a_background_is_the_same_for_every_view_and_its_noise_falls_with_the_steps():
    """A network that says what it sees: noise of one draw on one colour, at the noise level of the step."""
    seen = []

    class Watch:
        @hookimpl(wrapper=True)
        def vitrail_predict(self, step, rows):
            if not step.repeat:
                seen.append((step, rows.model_input * step.norm))
            return (yield)

    stage = {"patching": {"type": "windows", "size": 12, "pad": "background"}, "fusion": "average"}
    run = RunConfig(prompt="red", height=128, width=64, num_inference_steps=4, guidance_scale=1.0, row_batch=1)
    coloured_sampler(stage, plugins=(("watch", Watch()),)).run(run)
    beyond = [(step, torch.cat([latents[..., :2], latents[..., 10:]], -1)) for step, latents in seen]
    (first, one), (_, other) = beyond[:2]
    assert torch.equal(one, other), "two views of a step"
    noise = (one - beyond[-1][1]) / (first.sigma - beyond[-1][0].sigma)
    for step, cells in beyond:
        colour = (cells - step.sigma * noise).flatten(2)
        torch.testing.assert_close(colour, colour[..., :1].expand_as(colour), rtol=1e-3, atol=1e-3)


def test_the_method_is_registered():
    assert METHOD in METHODS


def test_a_control_picture_is_refused_where_copies_are_asked_about():
    pipe, hints = with_control(FAMILIES["sd"]())
    with pytest.raises(CapabilityError, match=r"stage 1: Direction asks about copies .* leave control_image out"):
        latents(pipe, METHOD, **hints)


def test_what_is_filled_up_is_no_picture_for_masks_and_regions(pipe):
    narrow, told = {"height": 128, "width": 64}, "would count what is filled up as picture; set pad"
    windows = "stages.0.patching={type='windows', size=12, pad='background'}"
    masked = ("stages.0.masking='attention'", "stages.0.guidance=['sync']")
    with pytest.raises(CapabilityError, match=f"a mask {told}"):
        latents(pipe, "multidiffusion", windows, *masked, **narrow)
    region = {"prompt": "blue", "box": (0.0, 0.0, 0.5, 1.0), "bootstrap": 1.0}
    with pytest.raises(CapabilityError, match=f"bootstrapped regions {told}"):
        latents(pipe, "multidiffusion", windows, regions=[region], **narrow)
    assert latents(pipe, "multidiffusion", windows, regions=[region | {"bootstrap": 0.0}], **narrow).shape[-1] == 8
