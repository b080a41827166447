"""What methods that grow a picture cost, as published, in forwards of a training picture; no network is run."""

from pathlib import Path

import pytest
import torch

from schedulers import new_scheduler
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

NATIVE = 128  # latent cells, as of SDXL
PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "cascades.md"


def plan(method, height, width, *sets):
    backbone = AnalyticBackbone(
        prior=MixturePrior(torch.zeros(1, 4, 1, 1), 1.0),
        scheduler=new_scheduler("EulerDiscreteScheduler"),
        native_size=NATIVE,
        offers=frozenset({"vae"}),
    )
    sampler = Sampler(backbone, load_method(method, sets), model="analytic")
    return sampler.plan(RunConfig(prompt="", height=height, width=width, num_inference_steps=50))


def sizes(plan):
    return [stage.size for stage in plan.stages]


@pytest.mark.parametrize(
    ("method", "side", "sets", "published", "through", "decoded"),
    [
        ("ap-ldm", 2048, (), 105, [1024, 2048], 2),
        ("ap-ldm", 4096, (), 592, [1024, 2984, 4096], 3),
        ("diffusehigh", 2048, (), 133, [1024, 2048], 7),
        ("diffusehigh", 2048, ("cascade.count=2",), 172, [1024, 1536, 2048], 13),
        ("diffusehigh", 3072, (), 402, [1024, 2048, 3072], 13),
        ("diffusehigh", 4096, (), 1093, [1024, 2048, 3072, 4096], 19),
        ("megafusion", 2048, (), 95, [1024, 2048], 2),
        ("megafusion", 2048, ("cascade.spacing=side", "cascade.count=2"), 80.5, [1024, 1536, 2048], 3),
        ("megafusion", 4096, (), 297.5, [1024, 2048, 4096], 3),
        ("direct", 2048, (), 275, [2048], 1),
    ],
)
def test_published_costs(method, side, sets, published, through, decoded):
    """And what docs/how-to/cascades.md says of them, line by line."""
    planned = plan(method, side, side, *sets)
    assert sizes(planned) == [(n, n) for n in through]
    assert planned.cost.evaluations(NATIVE * NATIVE) == pytest.approx(published, rel=0.004)
    assert (planned.cost.decodes, planned.cost.encodes) == (decoded, decoded - 1)
    named = [f"`{each}`" for each in (method, *(change.replace("=", " = ") for change in sets))]
    steps = ", ".join(str(stage.num_steps) for stage in planned.stages)
    sides = ", ".join(map(str, through[:-1]))
    line = f"| {', '.join(named)} | {side} x {side} | {sides} | {steps} | {published} | {decoded}, {decoded - 1} |"
    assert line.replace("|  |", "| |") in PAGE.read_text()


def test_calls_of_the_vae():
    """DiffuseHigh: a pair at every further size and one at each of five steps there; AP-LDM: a pair a size."""
    grown, guided = plan("ap-ldm", 4096, 4096).cost, plan("diffusehigh", 4096, 4096).cost
    assert (grown.decodes, grown.encodes) == (3, 2)
    assert (guided.decodes, guided.encodes) == (1 + 3 * 6, 3 * 6)


@pytest.mark.parametrize("method", ["ap-ldm", "diffusehigh"])
def test_proportions_are_kept_at_every_size(method):
    planned = plan(method, 1536, 3072)
    first, *_, last = sizes(planned)
    assert last == (1536, 3072) and abs(first[0] * first[1] / 1024**2 - 1) < 0.05
    for height, width in sizes(planned):
        assert width / height == pytest.approx(2.0, rel=0.02)
    wide, tall = plan(method, 1536, 3072).cost, plan(method, 3072, 1536).cost
    assert wide == tall


@pytest.mark.parametrize("method", ["ap-ldm", "diffusehigh"])
def test_a_training_picture_costs_its_steps(method):
    cost = plan(method, 1024, 1024).cost
    assert cost.evaluations(NATIVE * NATIVE) == 50 and (cost.decodes, cost.encodes) == (1, 0)
