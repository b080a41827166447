"""Attention maps: the softmax of what the network's own layers received, whatever hangs on them."""

import threading

import accelerate
import peft
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from captures import ROWS, SIZE, TOKENS, WORDS, Scores, captured, draw, forward, fresh_unet, tiny_transformer
from vitrail.backbones.attention.cross_attention import (
    AttentionHeads,
    attention_to,
    capture_maps,
    cross_attentions,
    layer_shape,
    read_cross,
)
from vitrail.backbones.attention.joint_attention_maps import capture_joint_maps
from vitrail.backbones.rectification.scope import blocks
from vitrail.errors import CapabilityError, PredictionError


def crosses(query, key, bias):
    return query.shape[2] != key.shape[2]


def of_up_blocks(scores, unet, over="mean"):
    """The map of cross-attention by what the processors had, those of the way down left out."""
    down = sum(
        1 for block in unet.down_blocks for each in getattr(block, "attentions", ()) for _ in each.transformer_blocks
    ) + len(unet.mid_block.attentions[0].transformer_blocks)
    scores.calls = [call for call in scores.calls if crosses(*call)][down:]
    return scores.maps(crosses, lambda query, _: query.shape[2], over)


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
@pytest.mark.parametrize("over", ["mean", "max"])
def test_cross_maps_are_the_softmax_of_what_the_processors_had(kind, over, monkeypatch):
    unet = fresh_unet(kind)
    scores = Scores(monkeypatch)
    forward(unet)
    expected = of_up_blocks(scores, unet, over)
    torch.testing.assert_close(captured(unet, over=over), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_forward_that_is_looked_at_is_the_same_bit_for_bit(kind):
    network = fresh_unet() if kind == "sd" else tiny_transformer()
    capture = capture_maps if kind == "sd" else capture_joint_maps
    hooks = lambda: [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]  # noqa: E731
    plain, before, processors = forward(network), hooks(), dict(network.attn_processors)
    with capture(network, (), [0], [1]) as maps:
        assert torch.equal(forward(network), plain)
        assert network.attn_processors == processors
    assert maps.layers and hooks() == before

    def fail():
        with capture(network, (), [0], [1]):
            forward(network)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert hooks() == before


@given(
    cells=st.integers(1, 40),
    keys=st.integers(1, 20),
    most=st.integers(1, 4000),
    over=st.sampled_from(["mean", "max"]),
    bias=st.sampled_from([None, 1, "cells"]),
)
def test_a_bound_on_memory_changes_no_map(cells, keys, most, over, bias):
    rows = cells if bias == "cells" else 1
    heads = AttentionHeads(
        draw(2, 3, cells, 4), draw(2, 3, keys, 4, seed=1), 0.5, None if bias is None else draw(2, 3, rows, keys, seed=2)
    )
    columns = range(0, keys, 2)
    whole = attention_to(heads, columns, over, most=10**9)
    torch.testing.assert_close(attention_to(heads, columns, over, most), whole, rtol=1e-5, atol=1e-7)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.most = max(self.most, made.numel())
        return made


def test_no_tensor_is_larger_than_the_bound():
    heads = AttentionHeads(draw(1, 4, 256, 8), draw(1, 4, 300, 8), 0.3)
    with Largest() as seen:
        attention_to(heads, [1], most=20000)
    assert heads.key.numel() < seen.most <= 20000
    with Largest() as seen:
        attention_to(heads, [1])
    assert seen.most == 4 * 256 * 300


@pytest.mark.parametrize("over", ["mean", "max"])
def test_shares_of_all_keys_add_up_to_one(over):
    heads = AttentionHeads(draw(2, 3, 10, 4), draw(2, 3, 7, 4, seed=1), 0.5)
    each = torch.stack([attention_to(heads, [key], over) for key in range(7)])
    torch.testing.assert_close(each.sum(0), torch.ones(2, 10))


LAYERS = {
    "plain": {},
    "group norm": {"norm_num_groups": 4},
    "norm of the text": {"cross_attention_norm": "layer_norm"},
    "groups of the text": {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 4},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "unscaled": {"scale_qk": False},
    "biases": {"bias": True},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_layers_scores_are_those_of_diffusers(options, masked, monkeypatch):
    torch.manual_seed(0)
    layer = Attention(32, cross_attention_dim=24, heads=4, dim_head=8, processor=AttnProcessor(), **options).eval()
    for norm in (layer.group_norm, layer.norm_cross):
        if norm is not None:
            torch.nn.init.normal_(norm.weight)
    seen, scores = [], layer.get_attention_scores
    monkeypatch.setattr(layer, "get_attention_scores", lambda *a: seen.append(scores(*a)) or seen[-1])
    hidden, text = draw(3, 16, 32), draw(3, 9, 24, seed=1)
    bias = -10000.0 * (draw(3, 1, 9, seed=2) > 0.5) if masked else None
    with torch.inference_mode():
        layer(hidden, encoder_hidden_states=text, attention_mask=bias)
        heads = read_cross(layer, hidden, text, {"attention_mask": bias}, ROWS)
        found = attention_to(heads, TOKENS)
    expected = seen[0].view(3, 4, 16, 9)[ROWS][..., TOKENS].mean((1, 3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_words_that_are_masked_out_get_no_attention():
    unet, mask = fresh_unet(), torch.ones(3, WORDS)
    mask[:, TOKENS] = 0
    assert captured(unet, encoder_attention_mask=mask).max() == 0
    assert captured(unet).min() > 0


def test_autocast_leaves_the_softmax_in_float32(monkeypatch):
    unet, scores = fresh_unet(), Scores(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        forward(unet)
        maps = captured(unet)
    assert maps.dtype == torch.float32 and not torch.equal(maps, captured(unet))
    scores.calls = scores.calls[: len(scores.calls) // 3]  # those of the first forward
    torch.testing.assert_close(maps, of_up_blocks(scores, unet), rtol=1e-5, atol=1e-6)


def with_ip_adapter():
    """A U-Net that sees pictures beside the text, as ``load_ip_adapter`` leaves it."""
    unet, count, width, given = fresh_unet(), 4, 32, 16
    projection = {
        "proj.weight": draw(count * width, given),
        "proj.bias": draw(count * width),
        "norm.weight": draw(width),
        "norm.bias": draw(width),
    }
    sizes = [unet.get_submodule(name.removesuffix(".processor")).inner_dim for name in unet.attn_processors]
    adapter = {
        f"{2 * i + 1}.{part}.weight": draw(size, width, seed=i)
        for i, size in enumerate(sizes[1::2])
        for part in ("to_k_ip", "to_v_ip")
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    return unet.eval(), {"image_embeds": [draw(3, 1, given)]}


def test_an_ip_adapters_pictures_are_not_taken_for_text(monkeypatch):
    unet, pictures = with_ip_adapter()
    plain = captured(fresh_unet())
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.0]
    torch.testing.assert_close(captured(unet, added_cond_kwargs=pictures), plain)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [1.0]
    scores = Scores(monkeypatch)
    maps = captured(unet, added_cond_kwargs=pictures)
    to_text = [call for call in scores.calls if call[1].shape[2] == WORDS]
    scores.calls = to_text[-2:]
    expected = scores.maps(lambda *_: True, lambda query, _: query.shape[2])
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6)
    assert (maps - plain).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_lora_counts(kind, monkeypatch):
    network = (fresh_unet() if kind == "sd" else tiny_transformer()).double()
    plain = captured(network)
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    network.double()
    maps = captured(network)
    assert (maps - plain).abs().max() > 1e-4
    network.fuse_lora()
    network.unload_lora()
    torch.testing.assert_close(captured(network), maps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_weights_that_wait_elsewhere_are_fetched(kind):
    network = fresh_unet() if kind == "sd" else tiny_transformer()
    plain = captured(network)
    accelerate.cpu_offload(network, torch.device("cpu"))
    assert all(weight.is_meta for name, weight in network.named_parameters() if "to_q" in name)
    torch.testing.assert_close(captured(network), plain, rtol=0, atol=0)


def test_a_forward_that_no_layer_was_seen_in_has_no_map():
    unet = fresh_unet()
    with capture_maps(unet, (), ROWS, TOKENS) as maps:
        thread = threading.Thread(target=forward, args=(unet,))
        thread.start()
        thread.join()
    for ask in (maps.mean, maps.each):
        with pytest.raises(PredictionError, match="no attention layer was seen"):
            ask(SIZE)


def test_threads_that_share_a_network_see_only_their_own_forward():
    unet, found, both = fresh_unet(), {}, threading.Barrier(2)

    def look(row):
        with capture_maps(unet, (), [row], TOKENS) as maps:
            both.wait()
            forward(unet)
            both.wait()
        found[row] = maps

    threads = [threading.Thread(target=look, args=(row,)) for row in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = captured(unet)
    for number, row in enumerate((0, 2)):
        assert len(found[row].layers) == len(cross_attentions(unet, ()))
        torch.testing.assert_close(found[row].mean(SIZE), expected[number : number + 1])


def test_tokens_beyond_the_text_are_refused():
    for network, capture in ((fresh_unet(), capture_maps), (tiny_transformer(), capture_joint_maps)):
        told = pytest.raises(PredictionError, match=r"tokens \[77\], but the network was given (13|24) tokens")
        with told, capture(network, (), [0], [77]):
            forward(network)


def test_the_mean_is_that_of_all_layers_and_each_is_that_of_a_block():
    unet = fresh_unet("sdxl")
    with capture_maps(unet, (), ROWS, TOKENS) as maps:
        forward(unet)
    each = maps.each(SIZE)
    assert list(each) == sorted({number for number, _ in cross_attentions(unet, ())})
    weights = {number: sum(1 for at, _ in maps.layers if at == number) for number in each}
    total = sum(weights[number] * one for number, one in each.items()) / sum(weights.values())
    torch.testing.assert_close(maps.mean(SIZE), total)
    for number, one in each.items():
        torch.testing.assert_close(captured(unet, (number,)), one)


def test_layers_by_halvings_are_those_of_encoder_and_decoder_and_can_be_read_at_their_cells():
    unet = fresh_unet("sdxl")
    known = {block.halvings for block in blocks(unet) if hasattr(block.module, "attentions")}
    for halvings in sorted(known):
        with capture_maps(unet, (), ROWS, TOKENS, words=[[1], [2, 3]], halvings=halvings) as maps:
            forward(unet)
        cells = [layer_shape(*SIZE, one.shape[-1]) for one in maps.each_word]
        small = tuple(-(-side // 2**halvings) for side in SIZE)
        assert set(cells) == {small} and len(cells) >= 2
        coarse = torch.stack(maps.each_word).mean(0).unflatten(-1, small)
        grown = maps.by_word(SIZE)
        assert grown.shape[-2:] == SIZE
        assert torch.equal(torch.nn.functional.interpolate(grown, small, mode="nearest-exact"), coarse)
    sides = [n for n, _ in cross_attentions(unet, (), max(known))]
    assert len(sides) > len([n for n, _ in cross_attentions(unet, (0,))])  # the encoder's, too
    with pytest.raises(CapabilityError, match="this network has some at"):
        cross_attentions(unet, (), 9)


@pytest.mark.parametrize("layers", [(1,), (-2,), (0, 7)])
def test_up_blocks_that_do_not_exist_are_refused(pipe, layers):
    with pytest.raises(CapabilityError, match="this network has 1 up blocks"):
        cross_attentions(pipe.unet, layers)


def test_a_layer_named_twice_counts_once():
    unet = fresh_unet()
    assert len(cross_attentions(unet, (0, -1, 0))) == len(cross_attentions(unet, (0,)))


@given(height=st.integers(1, 60), width=st.integers(1, 60), halvings=st.integers(0, 4))
def test_a_layers_shape_is_told_by_its_cells(height, width, halvings):
    small = height, width
    for _ in range(halvings):
        small = (small[0] + 1) // 2, (small[1] + 1) // 2
    if small[0] * small[1] > 1:
        assert layer_shape(height, width, small[0] * small[1]) == small
    with pytest.raises(CapabilityError, match="no halving"):
        layer_shape(height, width, height * width + 1)
