"""What methods that change the network cost, as published, in forwards of a training picture; no network is run."""

import pytest

from tiny_families import FAMILIES
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CapabilityError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

NATIVE = 128  # latent cells, as of SDXL


@pytest.fixture(scope="module")
def pipe():
    """The tiny pipeline as if it had been trained with pictures of 1024 pixels."""
    made = FAMILIES["sd"]()
    made.unet.register_to_config(sample_size=NATIVE)
    return made


def cost(pipe, method, side, *sets):
    sampler = Sampler.from_pipeline(pipe, load_method(method, sets))
    return sampler.plan(RunConfig(prompt="", height=side, width=side, num_inference_steps=50)).cost


@pytest.mark.parametrize(
    ("method", "side", "published"),
    [
        ("scalecrafter", 2048, 275),
        ("scalecrafter", 3072, 900),
        ("scalecrafter-damped", 4096, 50 * 46 + 35 * 23),
        ("fouriscale", 2048, 50 * 5.5 + 35 * 2.75),
        ("fouriscale", 4096, 50 * 46 + 35 * 23),
        ("hidiffusion", 2048, 275),
        ("hidiffusion", 4096, 2300),
    ],
)
def test_published_costs(pipe, method, side, published):
    """A damped row, or a copy of one, is half of a forward with both branches; smaller features are not counted.

    FouriScale's authors have the copy at all 50 steps; after the 35th it is the row itself.
    """
    assert cost(pipe, method, side).evaluations(NATIVE * NATIVE) == published


def test_a_damped_row_counts_while_it_is_wanted(pipe):
    sets = [f"stages.0.guidance.0.until={until}" for until in (0.0, 0.7, 1.0)]
    costs = [cost(pipe, "scalecrafter-damped", 2048, each) for each in sets]
    assert [each.model_calls for each in costs] == [100, 135, 150]
    assert all(each.rows.keys() == {256 * 256} for each in costs)


@pytest.mark.parametrize("method", ["scalecrafter", "scalecrafter-damped", "fouriscale", "hidiffusion"])
def test_a_transformer_is_refused(method):
    with pytest.raises(CapabilityError, match=r"stages\.0\.rectification\.0: \w+ needs 'convolutions'"):
        cost(FAMILIES["sd3"](), method, 1024)
