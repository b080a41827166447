"""Synchronised windows: the gradient is one, the views go down it, and nothing else of a run is touched."""

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from perceptual_files import write
from tiny import in_double
from tiny_families import FAMILIES
from vitrail import hookimpl
from vitrail.backbones.vae.differentiable import decoder_of
from vitrail.backbones.vae.perceptual import JudgeDistance
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.gradients import CountedGradients
from vitrail.core.engine.run_state import Sampled, Timings
from vitrail.core.schedule.streams import Streams
from vitrail.demo.judge import Judge
from vitrail.errors import CapabilityError, ConfigError
from vitrail.plugins.guidance.synchronized import Synchronized
from vitrail.sampling.differentiation import without_graph
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

CALL = {"height": 64, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
GUIDANCE = "stages.0.guidance.0"


def sampled(pipe, *sets, method="syncdiffusion", plugins=(), **call):
    return Sampler.from_pipeline(pipe, load_method(method, sets), plugins=plugins)("a fox", **(CALL | call)).latents


class Bench:
    """The gradients of a run at one step, and views to try them on."""

    def __init__(self, pipe, index=4, scheduler=None, sets=()):
        self.sampler = Sampler.from_pipeline(pipe, load_method("syncdiffusion", sets))
        config = RunConfig(prompt="a fox", height=64, width=128, num_inference_steps=10, scheduler=scheduler)
        self.engine = self.sampler.engine(config, 0)
        self.timings, self.run = Timings(), self.engine.guidance.gradients
        self.gradients = CountedGradients(self.run, self.timings)
        self.step = self.engine.plan.steps()[index]
        self.patches = self.engine.plan.patches(self.step)[0]

    def views(self, dtype=torch.float32):
        """Latents of random views, in the scheduler's own form."""
        count, channels = len(self.patches.views), self.sampler.backbone.latent_channels
        return Streams(1).normal((count, 1, channels, 8, 8), "views").to(dtype) * self.step.norm

    def distances(self, views, picture):
        distance = self.run.distance(None)
        wanted = distance.features(picture)
        pairs = zip(views, self.patches.views, strict=True)
        shown = [self.gradients.picture(self.step, one, view) for one, view in pairs]
        return [float(distance.between(distance.features(each), wanted)) for each in shown]

    def guide(self, views, **options):
        done = Sampled(views, timings=self.timings)
        guidance = Synchronized(**options)
        scene = self.engine.guidance._scene(guidance.point, self.step, done, guidance, self.patches, None)
        return guidance.guide(self.step, views, scene, None)[0]


def exact_bench(pipe, *index, **options):
    """In double precision, for laws that hold to rounding: gradients make much of it."""
    bench = Bench(in_double(pipe), *index, **options)
    bench.run._distances[None] = JudgeDistance(Judge.load().network.double())
    return bench


@pytest.mark.parametrize("off", ["scale=0", "steps=0"])
def test_without_guidance_it_is_multidiffusion_bit_for_bit(pipe, off):
    call = {"height": 104, "width": 136}
    assert torch.equal(sampled(pipe, f"{GUIDANCE}.{off}", **call), sampled(pipe, method="multidiffusion", **call))


def test_a_single_view_has_nobody_to_follow(pipe):
    assert torch.equal(sampled(pipe, width=64), sampled(pipe, method="multidiffusion", width=64))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(family):
    """Through classifier-free guidance, network and decoder; steps so short that no activation turns."""
    bench = exact_bench(FAMILIES[family]())
    views, short = bench.views(torch.float64), 1e-8
    with without_graph(bench.sampler.composition):
        picture = bench.gradients.picture(bench.step, views[1], bench.patches.views[1])
        [gradient] = bench.gradients.of_distance(bench.step, views[:1], bench.patches.views[:1], picture, None)
        distance = bench.run.distance(None)
        wanted = distance.features(picture)

        def value(latents):
            clean = bench.run.clean(bench.step, latents, bench.patches.views[0], Timings())
            return float(distance.between(distance.features(bench.run.picture(clean)), wanted))

        for seed in range(2):
            way = Streams(seed).normal(tuple(gradient.shape), "way").double()
            way = way / way.norm() + gradient / gradient.norm()
            ahead, behind = value(views[0] + short * way), value(views[0] - short * way)
            assert (ahead - behind) / (2 * short) == pytest.approx(float((gradient * way).sum()), rel=1e-3)


def test_colours_out_of_range_are_clipped_and_pull_at_nothing(pipe):
    bench = Bench(pipe)
    with torch.enable_grad():
        clean = (20 * bench.views()[0]).requires_grad_()
        plain, shown = bench.run.new_decoder()(clean), bench.run.picture(clean)
        assert torch.equal(shown, plain.clamp(-1, 1)) and plain.abs().max() > 1.2
        (pull,) = torch.autograd.grad(shown, clean, (plain.abs() > 1).to(shown))
    assert pull.abs().max() == 0


@pytest.mark.parametrize("family", ["sd", "sd2", "sd3"])
def test_views_like_the_anchor_stay_and_the_anchor_always_does(family):
    """Without sizes that tell views apart (Stable Diffusion XL), the same latents show the same picture."""
    bench = exact_bench(FAMILIES[family]())
    with without_graph(bench.sampler.composition):
        views = bench.views(torch.float64)
        moved = bench.guide(views)
        alike = views[:1].expand_as(views).contiguous()
        still = bench.guide(alike)
    assert torch.equal(moved[1], views[1]) and (moved[[0, 2]] - views[[0, 2]]).abs().amax((1, 2, 3, 4)).min() > 1e-3
    assert (still - alike).abs().max() < 1e-9 * (moved - views).abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_moved_views_show_what_is_nearer_to_the_anchor(family):
    bench = Bench(FAMILIES[family]())
    with without_graph(bench.sampler.composition):
        views = bench.views()
        moved = bench.guide(views, scale=5.0)
        picture = bench.gradients.picture(bench.step, views[1], bench.patches.views[1])
        before, after = (bench.distances(each, picture) for each in (views, moved))
    assert after[0] < before[0] and after[2] < before[2] and after[1] == before[1]


def test_a_scheduler_whose_latents_are_larger_moves_them_as_much(pipe):
    exploding, preserving = exact_bench(pipe, 2), exact_bench(pipe, 2, scheduler="DDIMScheduler")
    assert exploding.step.timestep == preserving.step.timestep and exploding.step.norm > 2 * preserving.step.norm
    with without_graph(exploding.sampler.composition):
        benches = (exploding, preserving)
        large, unit = (bench.guide(bench.views(torch.float64)) / bench.step.norm for bench in benches)
        assert (unit - preserving.views()).abs().max() > 1e-2
    torch.testing.assert_close(large, unit, rtol=1e-3, atol=1e-3)


class Watcher:
    """Sees the views that guidance returned and the canvas of every step."""

    def __init__(self):
        self.views, self.canvases = [], []

    @hookimpl(wrapper=True)
    def vitrail_guide(self, step, guidance, subject, scene, state):
        answer = yield
        self.views.append((scene.patches.views, answer[0].clone()))
        return answer

    @hookimpl
    def vitrail_step_end(self, step, latents, prediction):
        self.canvases.append(prediction.latents)


def test_the_canvas_goes_on_from_the_mean_of_the_moved_views(pipe):
    watcher = Watcher()
    sampled(pipe, f"{GUIDANCE}.steps=2", plugins=[("watcher", watcher)])
    for index, ((views, moved), canvas) in enumerate(zip(watcher.views, watcher.canvases, strict=True)):
        total, seen = torch.zeros_like(canvas), torch.zeros_like(canvas)
        for view, latents in zip(views, moved, strict=True):
            view.add_to(total, latents)
            view.add_to(seen, torch.ones_like(latents))
        torch.testing.assert_close(total / seen, canvas, rtol=1e-5, atol=1e-5)
        agree = all(torch.allclose(view.read(canvas), each, atol=1e-4) for view, each in zip(views, moved, strict=True))
        assert agree == (index >= 2)


def test_a_run_leaves_no_gradient_and_no_switch_behind(pipe):
    pipe = copy.deepcopy(pipe)
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    for number, parameter in enumerate(pipe.unet.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = [p.requires_grad for module in modules for p in module.parameters()]
    with torch.inference_mode():  # of the caller
        inside = sampled(pipe, num_inference_steps=2)
    outside = sampled(pipe, num_inference_steps=2)
    assert torch.equal(inside, outside) and not outside.is_inference() and not outside.requires_grad
    assert [p.requires_grad for module in modules for p in module.parameters()] == before
    assert all(p.grad is None and not p.is_inference() for module in modules for p in module.parameters())


def test_a_vae_in_float16_is_differentiated_in_float32_and_stays_as_it_was(pipe):
    low = copy.deepcopy(pipe.vae).half()
    high = copy.deepcopy(low).float().requires_grad_(False)
    latents, found = Streams(0).normal((1, 4, 8, 8), "latents"), []
    for vae in (low, high):
        decode, leaf = decoder_of(vae, torch.device("cpu")), latents.clone().requires_grad_()
        shown = decode(leaf)
        found += [shown.detach(), torch.autograd.grad(shown.square().mean(), leaf)[0]]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3]) and found[1].abs().max() > 0
    assert low.dtype == torch.float16 and all(p.grad is None for p in low.parameters())
    plain = (high.decode(latents / high.config.scaling_factor, return_dict=False)[0]).detach()
    torch.testing.assert_close(found[0], plain)


def no_call(pipe):
    def stop(*_):
        raise AssertionError("the text was encoded")

    return pipe.text_encoder.register_forward_hook(stop)


def test_weights_that_move_are_refused_before_anything_is_computed(pipe):
    pipe = copy.deepcopy(pipe)
    add_hook_to_module(pipe.unet, ModelHook())
    no_call(pipe)
    try:
        with pytest.raises(CapabilityError, match="without CPU offload"):
            sampled(pipe)
    finally:
        remove_hook_from_module(pipe.unet)


def test_weights_made_in_inference_mode_are_refused(pipe):
    with torch.inference_mode():
        pipe = copy.deepcopy(pipe)
    no_call(pipe)
    with pytest.raises(CapabilityError, match="load the pipeline outside"):
        sampled(pipe)


def test_a_file_of_weights_is_another_distance_and_a_wrong_one_is_refused_before_anything_is_computed(pipe, tmp_path):
    right = write(tmp_path / "lpips.safetensors")
    wrong = write(tmp_path / "other.safetensors", **{"lin0.model.1.weight": None})
    call = {"num_inference_steps": 2}
    by_file = sampled(pipe, f"{GUIDANCE}.weights={right}", **call)
    assert by_file.isfinite().all() and not torch.equal(by_file, sampled(pipe, **call))
    other = copy.deepcopy(pipe)
    no_call(other)
    with pytest.raises(ConfigError, match=r"stages.0.guidance.0: weights: .*lin0.model.1.weight"):
        sampled(other, f"{GUIDANCE}.weights={wrong}")
    with pytest.raises(ConfigError, match="cannot be read"):
        sampled(other, f"{GUIDANCE}.weights={tmp_path / 'none.safetensors'}")
