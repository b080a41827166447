"""The lists of dilations that the page on rectification gives, on networks of the shape they are for."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from rectified import built
from vitrail.backbones.rectification.dilated_convolution import DilatedConvolution
from vitrail.core.config.loader import Loader
from vitrail.sampling.discovery import build_registry

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "rectification.md"


def listed(title):
    """The rectifications of one block of the page, by its first line."""
    [block] = re.findall(rf"```toml\n# {re.escape(title)}[^\n]*\n(.*?)```", PAGE.read_text(), re.S)
    [stage] = tomllib.loads("[[stages]]\n" + block)["stages"]
    loader = Loader(build_registry())
    tables = [{name: value for name, value in table.items() if name != "type"} for table in stage["rectification"]]
    return [loader.structure(table, DilatedConvolution, title) for table in tables]


def four_levels():
    """As Stable Diffusion 1.5 and 2.1."""
    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 32, 32), layers_per_block=2, cross_attention_dim=32
    )


def by_block(strategy, network):
    """The dilation of every block or, where its parts differ, of every part."""
    strategy.check(network)
    found = {}
    for conv, dilation in strategy._chosen(network):
        found.setdefault(".".join(conv.name.split(".")[: 1 if conv.name.startswith("mid") else 2]), set()).add(dilation)
    return {name: min(values) if len(values) == 1 else values for name, values in found.items()}


def test_sdxl_at_4096_by_2048():
    [strategy] = listed("SDXL, 4096 x 2048")
    assert by_block(strategy, built("deep")) == {
        "down_blocks.2": 3,
        "mid_block": 4,
        "up_blocks.0": 4,
        "up_blocks.1": 3,
        "up_blocks.2": 2,
    }
    assert strategy.progressive and strategy.until * 50 == pytest.approx(35)


def test_sd_1_5_at_2048():
    first, second = listed("SD 1.5, 2048 x 2048")
    every = {
        "down_blocks.1": 2,
        "down_blocks.2": 3,
        "down_blocks.3": 4,
        "mid_block": 4,
        "up_blocks.0": 4,
        "up_blocks.1": 3,
        "up_blocks.2": 2,
    }
    network = four_levels()
    assert by_block(first, network) == every
    less = {name: dilation for name, dilation in every.items() if name not in ("down_blocks.1", "up_blocks.2")}
    assert by_block(second, network) == less
    assert (first.branches, second.branches) == (("uncond", "cond"), ("damped",))


def test_sd_2_1_at_2048():
    [strategy] = listed("SD 2.1, 2048 x 2048")
    assert by_block(strategy, four_levels()) == {
        "down_blocks.2": {3, 4},
        "down_blocks.3": 4,
        "mid_block": 4,
        "up_blocks.0": 4,
        "up_blocks.1": 4,
        "up_blocks.2": 3,
        "up_blocks.3": 2,
    }
    lower = {conv.name: dilation for conv, dilation in strategy._chosen(four_levels())}
    assert lower["down_blocks.2.downsamplers.0.conv"] == 4 and strategy.until * 50 == pytest.approx(37)
