"""Runs that grow through several sizes: what enters a size, what is counted, what ranks and checkpoints keep."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve

from tiny import in_double
from vitrail import hookimpl
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.cascade import Cascade
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.sampler import Sampler

WHOLE = {"patching": "whole", "fusion": "average"}
CALL = {"height": 128, "width": 192, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


def cascade(*stages, **options):
    table = {"cascade": options, "stages": [WHOLE, *stages]}
    return Loader(build_registry()).structure(table, Composition, "test")


def sampled(pipe, composition, **call):
    return Sampler.from_pipeline(pipe, composition)("a fox", **(CALL | call))


class Starts:
    """The canvas that every step began with, and the one it left."""

    def __init__(self):
        self.before, self.after = {}, {}

    @hookimpl
    def vitrail_step_end(self, step, latents, prediction):
        self.before[step.index], self.after[step.index] = prediction.latents.clone(), latents.clone()


def grown_by_hand(pipe, resize, latents, size):
    """What a further size of so many pixels begins with, without its noise, in float32 as pictures and latents are."""
    if resize == "latents":
        return F.interpolate(latents, [side // 8 for side in size], mode="bicubic")
    vae, scaling = pipe.vae, pipe.vae.config.scaling_factor
    picture = (vae.decode(latents.to(vae.dtype) / scaling).sample.float() / 2 + 0.5).clamp(0, 1)
    larger = F.interpolate(picture, size, mode="bicubic").clamp(0, 1)
    return (scaling * vae.encode((2 * larger - 1).to(vae.dtype)).latent_dist.mode()).float()


@pytest.mark.parametrize("resize", ["latents", "pixels"])
def test_a_last_size_of_one_step_starts_from_the_grown_picture(pipe, resize):
    """At the last timestep hardly any noise is left, so what was grown comes out nearly as it went in."""
    pipe, composition = in_double(pipe), cascade(WHOLE | {"enter": {"resize": resize, "strength": [0.01]}})
    starts, size = Starts(), (192, 192)
    call = CALL | {"num_inference_steps": 50, "guidance_scale": 1.0, "height": 192}
    sampler = Sampler.from_pipeline(pipe, composition, plugins=[("starts", starts)])
    engine = sampler.engine(RunConfig(prompt="", height=192, width=192, num_inference_steps=50), 0)
    steps = engine.plan.steps()
    assert [phase.picture for phase in engine.plan.phases] == [(64, 64), (112, 112), size]
    result = sampler("a fox", **call)
    ends = [s.index for s, t in pairwise(steps) if s.phase != t.phase]
    assert [steps[end].phase for end in ends] == [0, 1] and len(steps) == 52
    with torch.no_grad():
        grown = grown_by_hand(pipe, resize, starts.after[ends[1]], size)
    noise, sigma = engine.streams.normal(tuple(grown.shape), "phase-noise", 2), steps[-1].sigma
    torch.testing.assert_close(starts.before[51], grown + sigma * noise, rtol=1e-3, atol=1e-3 * sigma)
    assert (starts.before[51] - grown).abs().mean() < sigma < 0.05
    assert (result.latents - grown).abs().mean() < sigma


def test_counted_calls_are_those_that_were_made(pipe):
    composition = cascade(
        {"enter": {"resize": "pixels", "strength": [0.5]}, "patching": "windows", "fusion": "average", "until": 0.5},
        WHOLE,
        spacing="side",
    )
    sampler = Sampler.from_pipeline(pipe, composition)
    config = RunConfig(prompt="a fox", height=200, width=136, num_inference_steps=6)
    cost, report = sampler.plan(config).cost, sampler.run(config).report
    assert (report.model_calls, report.vae_decodes, report.vae_encodes) == (
        cost.model_calls,
        cost.decodes,
        cost.encodes,
    )
    assert cost.decodes == 1 + cost.encodes > 1


def test_a_picture_no_larger_than_a_training_picture_has_one_size(pipe):
    alone = Loader(build_registry()).structure({"stages": [WHOLE]}, Composition, "test")
    composition = cascade(WHOLE | {"enter": {}})
    small = {"height": 64, "width": 64}
    assert torch.equal(sampled(pipe, composition, **small).latents, sampled(pipe, alone, **small).latents)


@pytest.mark.parametrize(("base", "spacing"), [("area", "ratio"), ("side", "side"), ("area", "area")])
@pytest.mark.parametrize("wanted", [(4096, 4096), (2048, 4096), (1536, 1000), (1024, 1025), (5000, 600)])
def test_sizes_grow_to_the_wanted_one_and_keep_its_proportions(base, spacing, wanted):
    sizes = Cascade(base=base, spacing=spacing).pictures(*wanted, 1024, 8)
    assert sizes[-1] == wanted and len(sizes) >= 2
    first = max(sizes[0]) if base == "side" else (sizes[0][0] * sizes[0][1]) ** 0.5
    assert abs(first - 1024) <= 64
    for (h, w), (height, width) in pairwise(sizes):
        assert h <= height and w <= width
        assert h % 8 == w % 8 == 0


def test_published_sizes():
    sides = Cascade(base="side", spacing="side")
    assert sides.pictures(4096, 4096, 1024, 8) == tuple((n, n) for n in range(1024, 4097, 1024))
    areas = Cascade(spacing="area", count=2).pictures(4096, 4096, 1024, 8)
    assert areas[0] == (1024, 1024) and abs(areas[1][0] - 2984) <= 24
    cut = Cascade(spacing="area", rounding="down")
    assert cut.pictures(4096, 4096, 1024, 8) == ((1024, 1024), (2984, 2984), (4096, 4096))
    assert cut.pictures(1024, 2048, 1024, 8)[0] == (720, 1448)
    assert cut.pictures(2048, 4096, 1024, 8)[1] == (1528, 3064)  # 1535.98, from a first size of 724 x 1448
    cells = Cascade(base="side", spacing="side", rounding="down").pictures(2048, 3072, 1024, 8)
    assert [(h // 8, w // 8) for h, w in cells] == [(85, 128), (170, 256), (256, 384)]
    assert Cascade(spacing="side", count=2).pictures(2048, 2048, 1024, 8)[1] in {(1536, 1536)}
    assert Cascade().pictures(4096, 4096, 1024, 8) == ((1024, 1024), (2048, 2048), (4096, 4096))


@pytest.mark.parametrize("rounding", ["views", "down"])
@pytest.mark.parametrize("wanted", [(256, 256), (150, 200)])
def test_given_sizes_that_are_the_computed_ones_change_no_bit(pipe, rounding, wanted):
    computed = cascade(WHOLE | {"enter": {"strength": [0.5]}}, rounding=rounding)
    sizes = computed.cascade.pictures(*wanted, 64, 8)
    given = evolve(computed, cascade=Cascade(sizes=[f"{w}x{h}" for h, w in sizes[:-1]]))
    call = {"height": wanted[0], "width": wanted[1]}
    assert len(sizes) > 1
    assert torch.equal(sampled(pipe, computed, **call).latents, sampled(pipe, given, **call).latents)


@pytest.mark.parametrize("spacing", ["side", "area", "ratio"])
@pytest.mark.parametrize("wrap", ["none", "x", "xy"])
@pytest.mark.parametrize("wanted", [(4096, 4096), (2304, 4608), (1536, 1024)])
def test_cut_sizes_lose_less_than_a_unit_and_need_no_padding_where_edges_meet(spacing, wrap, wanted):
    sizes = Cascade(base="side", spacing=spacing, rounding="down").pictures(*wanted, 1024, 8, wrap)
    exact = max(wanted) / 1024
    assert sizes[-1] == wanted and 0 <= wanted[0] / exact - sizes[0][0] < 8 and sizes[0][1] <= 1024
    for (h, w), axis in ((size, axis) for size in sizes[:-1] for axis in wrap if wrap != "none"):
        strides = math.lcm(*(max(1, math.floor(side / 1024 + 0.5)) for side in (h, w)))
        assert (h if axis == "y" else w) % (8 * strides) == 0


@pytest.mark.parametrize(
    ("sizes", "told"),
    [(["256"], "must be smaller"), (["128x64"], "other proportions"), (["512"], "must be smaller")],
)
def test_given_sizes_that_are_not_on_the_way_are_refused_before_a_model_call(pipe, sizes, told):
    composition = cascade(WHOLE | {"enter": {}}, sizes=sizes)
    with pytest.raises(ConfigError, match=told):
        Sampler.from_pipeline(pipe, composition).plan(RunConfig(prompt="", height=256, width=256))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"stages": [WHOLE | {"enter": {}}]}, "begins with noise"),
        ({"stages": [WHOLE, WHOLE | {"enter": {}}]}, "need each other"),
        ({"cascade": {}, "stages": [WHOLE]}, "need each other"),
        ({"cascade": {"sizes": ["64", "64"]}, "stages": [WHOLE, WHOLE | {"enter": {}}]}, "must grow"),
        ({"cascade": {"sizes": ["64px"]}, "stages": [WHOLE, WHOLE | {"enter": {}}]}, "as 1024 or 1536x1024"),
        ({"cascade": {"sizes": ["64"], "count": 1}, "stages": [WHOLE, WHOLE | {"enter": {}}]}, "leave one out"),
        ({"cascade": {}, "stages": [WHOLE, WHOLE | {"enter": {"clip": "resized"}}]}, "works on pixels"),
        ({"cascade": {}, "stages": [WHOLE, WHOLE | {"enter": {}, "unscaled_start": True}]}, "scale_batch"),
        ({"cascade": {}, "stages": [WHOLE | {"until": 0.5}, WHOLE | {"enter": {}}]}, "must be 1.0"),
        ({"cascade": {}, "stages": [WHOLE, WHOLE | {"enter": {"sharpen": 1.0}}]}, "works on pixels"),
        ({"cascade": {}, "stages": [WHOLE, WHOLE | {"enter": {"strength": [0.0]}}]}, "shares of the steps"),
        ({"cascade": {}, "stages": [WHOLE, WHOLE | {"enter": {"strenght": [0.5]}}]}, "strength"),
    ],
)
def test_plans_that_mean_nothing_are_refused(table, told):
    with pytest.raises(ConfigError, match=told):
        Loader(build_registry()).structure(table, Composition, "test")
