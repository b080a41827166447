"""ControlNet: the hint counts as in diffusers' own pipelines, and every view gets the part of it that it looks at."""

import functools

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import MultiControlNetModel, SD3ControlNetModel
from diffusers.image_processor import VaeImageProcessor

from adapters import build, control_network, controlled, hint, picture
from tiny import NATIVE
from tiny_families import FAMILIES
from toy import composition
from vitrail import hookimpl
from vitrail.backbones.conditioning.control import Control
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.inputs import Extras
from vitrail.core.schedule.step import Step
from vitrail.errors import CapabilityError, ConfigError, ModelError
from vitrail.sampling.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

SIDE = 8 * NATIVE
CALL = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": SIDE, "width": SIDE, "output_type": "latent"}
UNETS = ("sd", "sdxl")
JITTERED = {"patching": {"type": "windows", "overlap": 0.5, "jitter": True}, "fusion": "average"}
STRIDED = {"patching": {"type": "lattice"}, "fusion": "scatter"}


def noise(seed=1, cells=NATIVE):
    return torch.randn((1, 4, cells, cells), generator=torch.Generator().manual_seed(seed))


@functools.cache
def control_pipe(family, count=1, kind=""):
    """A pipeline with one control network, or with several."""
    pipe = FAMILIES[family]()
    networks = [control_network(pipe.unet, seed) for seed in range(1, count + 1)]
    return controlled(pipe, networks[0] if count == 1 else MultiControlNetModel(networks), kind)


def ours(pipe, hints, method="direct", **call):
    return Sampler.from_pipeline(pipe, method)("a fox", control_image=hints, **(CALL | call)).latents


def theirs(pipe, hints, **call):
    return pipe("a fox", image=hints, **(CALL | call)).images


# ---------------------------------------------------------------- as in diffusers' pipelines


@pytest.mark.parametrize(
    ("given", "call"),
    [
        (hint(SIDE, SIDE), {}),
        (hint(SIDE, SIDE), {"guidance_scale": 1.0}),
        (picture(40), {"controlnet_conditioning_scale": 0.4}),
    ],
    ids=["tensor", "unguided", "picture of another size"],
)
@pytest.mark.parametrize("family", UNETS)
def test_a_hint_counts_as_in_the_plain_pipeline(family, given, call):
    pipe, call = control_pipe(family), call | {"latents": noise()}
    made = ours(pipe, given, **call)
    assert torch.equal(made, theirs(pipe, given, **call))
    assert not torch.allclose(made, ours(pipe, 1 - hint(SIDE, SIDE), **call), atol=0.01)


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("times", [(0.0, 0.5), (0.25, 1.0), (0.3, 0.6)])
def test_a_hint_counts_while_it_should(times, scheduler):
    pipe, start, end = control_pipe("sd"), *times
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(before.config)
    call = {"latents": noise(), "control_guidance_start": start, "control_guidance_end": end}
    made = ours(pipe, hint(SIDE, SIDE), **call)
    assert torch.equal(made, theirs(pipe, hint(SIDE, SIDE), **call))
    assert not torch.equal(made, ours(pipe, hint(SIDE, SIDE), latents=noise()))
    pipe.scheduler = before


@pytest.mark.parametrize(
    ("family", "call"),
    [
        ("sd", {}),
        ("sdxl", {"controlnet_conditioning_scale": 0.5}),
        ("sd", {"controlnet_conditioning_scale": [0.0, 0.7]}),
        ("sdxl", {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]}),
        ("sd", {"control_guidance_end": [0.25, 0.75]}),
    ],
)
def test_several_control_networks(family, call):
    pipe, hints = control_pipe(family, 2), [hint(SIDE, SIDE, 1), hint(SIDE, SIDE, 2)]
    call = call | {"latents": noise()}
    made = ours(pipe, hints, **call)
    assert torch.equal(made, theirs(pipe, hints, **call))
    assert not torch.equal(made, ours(pipe, hints[::-1], **call))


def weights_from(first, steps):
    """The weights of two hints at each step of a run that begins later."""
    control = Control(scales=(0.5, 2.0), starts=(0.0, 0.4), ends=(0.6, 1.0), first=first)
    rest = {"timestep": 1.0, "alpha": 1.0, "sigma": 1.0, "stage": 0, "stage_step": 0, "prediction_type": "epsilon"}
    count = first + steps
    return [
        control.weights(Step(index=index, num_steps=count, stage_num_steps=count, **rest))
        for index in range(first, count)
    ]


@pytest.mark.parametrize("first", [0, 3, 7])
def test_shares_are_of_the_steps_that_a_run_does(first):
    assert weights_from(first, 5) == [[0.5, 0.0], [0.5, 0.0], [0.5, 2.0], [0.0, 2.0], [0.0, 2.0]]


@pytest.mark.parametrize("family", UNETS)
def test_a_hint_beside_the_picture_of_an_ip_adapter(family):
    pipe, more = build(family, "controlnet", "ip-adapter")
    call = CALL | {"latents": noise(), "ip_adapter_image": more["ip_adapter_image"]}
    made = Sampler.from_pipeline(pipe, "direct")("a fox", control_image=more["control_image"], **call).latents
    assert torch.equal(made, pipe("a fox", image=more["control_image"], **call).images)


@pytest.mark.parametrize("family", UNETS)
def test_a_hint_and_a_picture_to_start_from(family):
    pipe, given = control_pipe(family, 1, "Img2Img"), hint(SIDE, SIDE)
    call = CALL | {"image": noise(2), "control_image": given, "strength": 0.6}
    plain = pipe("a fox", generator=torch.Generator().manual_seed(1), **call).images
    made = Sampler.from_pipeline(pipe, "direct")("a fox", latents=noise(1), **call).latents
    assert torch.equal(made, plain)


# ---------------------------------------------------------------- the part that a view looks at


class Watch:
    """What goes into the network, and what its control network is given, micro-batch by micro-batch."""

    def __init__(self, controlnet):
        self.rows, self.seen = [], []
        nets = getattr(controlnet, "nets", [controlnet])
        self.handles = [net.register_forward_pre_hook(self._look, with_kwargs=True) for net in nets]

    def _look(self, net, args, kwargs):
        self.seen.append(kwargs["controlnet_cond"] if "controlnet_cond" in kwargs else args[3])

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        self.rows.append(rows)
        return (yield)

    def cuts(self):
        """A view and what the control network got for it, for every row."""
        nets = len(self.handles)
        assert len(self.seen) == nets * len(self.rows) > 0
        for number, rows in enumerate(self.rows):
            for cond in self.seen[nets * number : nets * (number + 1)]:
                assert len(cond) == len(rows.views)
                yield from zip(rows.views, cond, strict=True)


def watched(pipe, hints, method, **call):
    watch = Watch(pipe.controlnet)
    sampler = Sampler.from_pipeline(pipe, method, plugins=[("watch", watch)])
    sampler("a fox", control_image=hints, **(CALL | {"num_inference_steps": 2} | call))
    for handle in watch.handles:
        handle.remove()
    return list(watch.cuts())


@pytest.mark.parametrize(("row_batch", "guidance_scale"), [(1, 5.0), (2, 5.0), (5, 5.0), (2, 1.0)])
@pytest.mark.parametrize("stage", ["multidiffusion", JITTERED], ids=["windows", "jittered"])
def test_a_window_gets_its_own_part_of_the_hint(stage, row_batch, guidance_scale):
    given = hint(2 * SIDE, 2 * SIDE)
    method = stage if isinstance(stage, str) else composition(stage)
    call = {"height": 2 * SIDE, "width": 2 * SIDE, "row_batch": row_batch, "guidance_scale": guidance_scale}
    cuts = watched(control_pipe("sd"), given, method, **call)
    places = {(view.vertical.start, view.horizontal.start) for view, _ in cuts}
    assert len(places) > (9 if stage is JITTERED else 8)
    for view, cond in cuts:
        top, left = 8 * view.vertical.start, 8 * view.horizontal.start
        assert torch.equal(cond, given[0, :, top : top + SIDE, left : left + SIDE])


def test_each_of_several_networks_gets_the_part_of_its_own_hint():
    hints = [hint(SIDE, 2 * SIDE, seed) for seed in (1, 2)]
    cuts = watched(control_pipe("sd", 2), hints, "multidiffusion", width=2 * SIDE, row_batch=2)
    found = [0, 0]
    for view, cond in cuts:
        left = 8 * view.horizontal.start
        parts = [torch.equal(cond, one[0, :, :, left : left + SIDE]) for one in hints]
        assert sum(parts) == 1
        found[parts.index(True)] += 1
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("row_batch", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (21, 10)], ids=str)
def test_a_strided_view_gets_the_mean_of_every_block(size, row_batch):
    height, width = 8 * size[0], 8 * size[1]
    given = hint(height, width)
    cuts = watched(control_pipe("sd"), given, composition(STRIDED), height=height, width=width, row_batch=row_batch)
    for view, cond in cuts:
        down, right = view.vertical.step, view.horizontal.step
        grown = F.pad(given, (0, 8 * NATIVE * right, 0, 8 * NATIVE * down), mode="replicate")
        part = grown[0, :, 8 * view.vertical.start :, 8 * view.horizontal.start :]
        part = part[:, : 8 * view.vertical.count * down, : 8 * view.horizontal.count * right]
        blocks = part.unflatten(1, (-1, down)).unflatten(3, (-1, right))
        assert torch.allclose(cond, blocks.mean((2, 4)), atol=1e-6)


def test_a_hint_that_is_constant_on_every_block_is_seen_as_it_is():
    small = hint(SIDE, SIDE)
    given = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    cuts = watched(control_pipe("sd"), given, composition(STRIDED), height=2 * SIDE, width=2 * SIDE)
    seen = [cond for view, cond in cuts if view.vertical.start == view.horizontal.start == 0]
    assert seen and all(torch.allclose(cond, small[0], atol=1e-6) for cond in seen)
    assert len(cuts) > len(seen)


def test_where_edges_meet_the_hint_goes_on():
    given = hint(SIDE, 2 * SIDE)
    cuts = watched(control_pipe("sd"), given, "multidiffusion", width=2 * SIDE, wrap="x")
    across = 0
    for view, cond in cuts:
        left = 8 * view.horizontal.start
        across += left + SIDE > 2 * SIDE
        assert torch.equal(cond, given[0].roll(-left, -1)[..., :SIDE])
    assert across > 0


@pytest.mark.parametrize("kind", ["tensor", "Pillow"])
def test_a_hint_of_any_size_lies_on_the_picture_pixel_by_pixel(kind):
    height, width = 101, 67
    values = (255 * hint(height, width)).round() / 255
    processor = VaeImageProcessor()
    given = values if kind == "tensor" else processor.numpy_to_pil(processor.pt_to_numpy(values))[0]
    cuts = watched(control_pipe("sd"), given, "multidiffusion", height=height, width=width, row_batch=2)
    grown = F.pad(values, (0, -width % 8, 0, -height % 8), mode="replicate")
    for view, cond in cuts:
        top, left = 8 * view.vertical.start, 8 * view.horizontal.start
        assert torch.allclose(cond, grown[0, :, top : top + SIDE, left : left + SIDE], atol=1e-6)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("count", "call", "told"),
    [
        (1, {}, "StableDiffusionControlNetPipeline has a ControlNet, so it needs control_image"),
        (2, {"control_image": hint(SIDE, SIDE)}, "has 2 control networks; give control_image as a list of as many"),
        (1, {"control_image": [hint(SIDE, SIDE)] * 2}, "has 1 control networks; give control_image"),
        (
            1,
            {"controlnet_conditioning_scale": [1.0, 1.0]},
            "controlnet_conditioning_scale must be one number, or a list",
        ),
        (2, {"control_guidance_end": [0.1, 0.2, 0.3]}, "control_guidance_end must be one number, or a list of 2"),
        (1, {"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "must be 0 <= start < end <= 1"),
        (1, {"control_guidance_end": 1.5}, "must be 0 <= start < end <= 1"),
    ],
)
def test_wrong_hints_are_refused_before_the_first_step(count, call, told):
    sampler = Sampler.from_pipeline(control_pipe("sd", count), "direct")
    with pytest.raises(ConfigError) as caught:
        sampler("a fox", callback_on_step_end=lambda *step: pytest.fail("a step was done"), **(CALL | call))
    assert told in str(caught.value)


def test_a_control_network_in_another_type_is_refused():
    pipe, call = build("sd", "controlnet")
    pipe.controlnet.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="is in bfloat16, its U-Net in float32; load both with one torch_dtype"):
        Sampler.from_pipeline(pipe, "direct")("a fox", **CALL, **call)


def test_a_hint_needs_a_control_network():
    sampler = Sampler.from_pipeline(FAMILIES["sd"](), "direct")
    with pytest.raises(ConfigError, match="StableDiffusionPipeline has no use for 'control_image'"):
        sampler("a fox", control_image=hint(SIDE, SIDE), **CALL)


def test_a_network_that_takes_the_mean_over_its_hint_is_refused():
    pipe = FAMILIES["sd"]()
    network = control_network(pipe.unet)
    network.register_to_config(global_pool_conditions=True)
    with pytest.raises(CapabilityError, match="takes the mean over its hint"):
        Sampler.from_pipeline(controlled(pipe, network), "direct")


def test_a_pipeline_of_stable_diffusion_3_with_control_is_refused():
    pipe = FAMILIES["sd3"]()
    network = SD3ControlNetModel.from_transformer(pipe.transformer, num_layers=1)
    pipe = diffusers.StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=network)
    with pytest.raises(ModelError, match="no adapter for 'StableDiffusion3ControlNetPipeline'"):
        Sampler.from_pipeline(pipe, "direct")


def test_the_plan_of_a_pipeline_that_needs_a_hint():
    sampler = Sampler.from_pipeline(control_pipe("sd"), "multidiffusion")
    config = RunConfig(prompt="a fox", height=128, width=128, num_inference_steps=2)
    assert sampler.plan(config, Extras(control_image=torch.zeros(1, 3, 128, 128))).model_calls == 2 * 2 * 9
