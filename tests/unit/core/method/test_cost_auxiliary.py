"""What guidance asks of networks besides the views: counted before a run, in forwards of the training size."""

import pytest
import torch

from schedulers import new_scheduler
from tiny import tiny_pipeline
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.cli.plan_lines import plan_lines
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.loop import Loop
from vitrail.core.method.cost import Cost
from vitrail.sampling.differentiation import without_graph
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

TRAINED = 128  # latent cells, as of Stable Diffusion XL


def cost(backbone, method, height, width, *sets):
    config = RunConfig(prompt="", height=height, width=width, num_inference_steps=50, guidance_scale=7.5)
    return Sampler(backbone, load_method(method, sets), model="large").plan(config).cost


def analytic():
    prior = MixturePrior(torch.zeros(1, 4, 1, 1), 1.0)
    return AnalyticBackbone(prior=prior, scheduler=new_scheduler("EulerDiscreteScheduler"), native_size=TRAINED)


@pytest.mark.parametrize(
    ("height", "width", "evaluations"),
    [(1024, 1024, 50), (2048, 2048, 305), (3072, 3072, 930), (4096, 4096, 2330)],
)
def test_upsample_guidance_as_published(height, width, evaluations):
    found = cost(analytic(), "upsample-guidance", height, width)
    assert found.evaluations(TRAINED**2) == evaluations and found.decodes == 1


def test_upsample_guidance_of_other_shapes_asks_for_about_a_training_picture():
    for height, width, m in ((1024, 2048, 1), (1536, 1536, 2), (2048, 4096, 3), (1000, 5000, 2)):
        rows = cost(analytic(), "upsample-guidance", height, width).rows
        small = -(-height // 8 // m) * -(-width // 8 // m)
        assert m == 1 or rows[small] == 2 * 30, rows
        assert len(rows) == (1 if m == 1 else 2)


def test_syncdiffusion_as_published_without_the_gradient_of_the_anchor():
    pipe = tiny_pipeline()
    pipe.unet.register_to_config(sample_size=TRAINED)
    backbone = Sampler.from_pipeline(pipe, "direct").backbone
    found = cost(backbone, "syncdiffusion", 2048, 2048, "stages.0.guidance.0.steps=5")
    assert found.evaluations(TRAINED**2) == 5 * (1 + 8 + 9) + 45 * 9
    assert (found.gradients, found.decodes, found.encodes) == (5 * 8, 5 * 9 + 1, 0)


@pytest.mark.parametrize(("method", "told"), [("syncdiffusion", "; 48 views are differentiated"), ("direct", None)])
def test_a_plan_tells_the_views_that_are_differentiated(pipe, method, told):
    """Of nine windows eight at each of three steps, for two pictures; and nothing where there are none."""
    config = RunConfig(prompt="a fox", height=128, width=128, num_inference_steps=4, num_images=2)
    *_, last = plan_lines(config, Sampler.from_pipeline(pipe, load_method(method)).plan(config))
    assert ("differentiated" in last) == (told is not None) and (told or "") in last


def test_a_report_counts_the_views_that_were_differentiated(pipe):
    sampler = Sampler.from_pipeline(pipe, load_method("syncdiffusion", ["stages.0.guidance.0.steps=1"]))
    config = RunConfig(prompt="a fox", height=64, width=128, num_inference_steps=2, num_images=2)
    assert sampler.run(config, output_type="latent").report.gradients == 2 * sampler.plan(config).cost.gradients == 4


@pytest.mark.parametrize("method", ["upsample-guidance", "syncdiffusion"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_what_a_run_counts_is_what_was_predicted(pipe, method, guidance_scale):
    sampler = Sampler.from_pipeline(pipe, load_method(method))
    options = {"height": 104, "width": 136, "num_inference_steps": 3, "guidance_scale": guidance_scale}
    engine = sampler.engine(RunConfig(prompt="a fox", **options), 0)
    with without_graph(sampler.composition):
        canvas = engine.plan.canvas
        start = engine.streams.normal((1, 4, canvas.height, canvas.width), "initial-latents")
        done = Loop(engine).run(start, lambda: False, lambda step, new, prediction: new)
    assert Cost.total([done.timings.cost, Cost(decodes=1)]) == engine.plan.cost()
    assert (engine.plan.cost().gradients > 0) == (method == "syncdiffusion")
