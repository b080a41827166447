"""Networks that `torch.compile` made faster: looked at uncompiled, since compiled code skips hooks that come later."""

import pytest
import torch

from captures import ROWS, SIZE, TOKENS, captured, forward, fresh_unet, tiny_transformer
from often import every
from vitrail.backbones.attention.cross_attention import capture_maps, cross_attentions, eager
from vitrail.backbones.attention.joint_attention_maps import capture_joint_maps


def compiled(network, way):
    torch.compiler.reset()
    blocks = network.up_blocks if hasattr(network, "up_blocks") else network.transformer_blocks
    if way == "around":
        return torch.compile(network, backend="eager")
    if way == "in place":
        network.compile(backend="eager")
    for number, block in enumerate(blocks):
        if way == "blocks in place":
            block.compile(backend="eager")
        if way == "blocks around":
            blocks[number] = torch.compile(block, backend="eager")
    return network


@pytest.mark.parametrize(
    ("kind", "way"),
    every(2, [("sd", "around"), ("sd", "blocks in place"), ("sd3", "in place"), ("sd3", "blocks around")]),
)
def test_a_compiled_network_is_looked_at_uncompiled(kind, way):
    make = fresh_unet if kind == "sd" else tiny_transformer
    expected, network = captured(make()), compiled(make(), way)
    forward(network)
    capture = capture_maps if kind == "sd" else capture_joint_maps
    with capture(eager(network), (), ROWS, TOKENS) as maps:
        forward(eager(network))
    torch.testing.assert_close(maps.mean(SIZE), expected, rtol=0, atol=0)
    seen = []
    layer = cross_attentions(network, ())[-1][1] if kind == "sd" else network.transformer_blocks[-1].attn
    handle = layer.to_q.register_forward_pre_hook(lambda *_: seen.append(1))
    forward(network)
    handle.remove()
    assert not seen, "it runs compiled again"
