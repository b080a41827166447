"""Features that are halved once more are those of a U-Net written out by hand, at any size."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve
from diffusers import UNet2DConditionModel

from rectified import BUILD, ask, changed, exact, forward
from tiny import NATIVE, tiny_unet
from vitrail.backbones.rectification.raunet import RAUNet
from vitrail.errors import CapabilityError
from vitrail.sampling.methods import load_method
from vitrail.testing import make_step

FORMS = ("stride", "pool")
close = torch.testing.assert_close  # in double precision


@pytest.fixture(params=BUILD)
def unet(request):
    return exact(request.param)


def layers(block, emb, text, hidden, skips=None, after=None):
    """Residual blocks and transformers of a block, one after another; ``after`` may change what one gives."""
    for i, resnet in enumerate(block.resnets):
        hidden = hidden if skips is None else torch.cat([hidden, skips.pop()], 1)
        hidden = resnet(hidden, emb)
        if getattr(block, "attentions", None):
            hidden = block.attentions[i](hidden, encoder_hidden_states=text, return_dict=False)[0]
        hidden = hidden if after is None else after(i, hidden)
        yield hidden


@torch.inference_mode()
def by_hand(unet, latents, text, strides=(), pools=()):
    """The U-Net's forward with levels whose downsampler steps by 4, and levels that are pooled."""
    emb = unet.time_embedding(unet.time_proj(torch.tensor([5])).to(latents.dtype))
    hidden = unet.conv_in(latents)
    skips, full = [hidden], {}
    for level, block in enumerate(unet.down_blocks):

        def shrink(i, given, level=level):
            if level in pools and i == 0:
                full[level] = given.shape[-2:]
                return F.avg_pool2d(given, 2, ceil_mode=True)
            return given

        skips += layers(block, emb, text, hidden, after=shrink)
        hidden = skips[-1]
        if block.downsamplers is not None:
            conv = block.downsamplers[0].conv
            how = {"stride": 4, "padding": 2, "dilation": 2} if level in strides else {"stride": 2, "padding": 1}
            hidden = F.conv2d(hidden, conv.weight, conv.bias, **how)
            skips.append(hidden)
    first, second = unet.mid_block.resnets
    hidden = unet.mid_block.attentions[0](first(hidden, emb), encoder_hidden_states=text, return_dict=False)[0]
    hidden = second(hidden, emb)
    for number, block in enumerate(unet.up_blocks):
        level, last = len(unet.up_blocks) - 1 - number, len(block.resnets) - 2

        def grow(i, given, level=level, last=last):
            return F.interpolate(given, size=full[level], mode="bicubic") if level in pools and i == last else given

        *_, hidden = layers(block, emb, text, hidden, skips, after=grow)
        if block.upsamplers is not None:
            hidden = block.upsamplers[0].conv(F.interpolate(hidden, size=skips[-1].shape[-2:], mode="nearest"))
    return unet.conv_out(F.silu(unet.conv_norm_out(hidden)))


def question(unet, height, width):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 3, unet.config.cross_attention_dim, generator=generator)
    return torch.randn(1, 4, height, width, generator=generator).to(unet.dtype), text.to(unet.dtype)


@pytest.mark.parametrize("num_steps", [1, 7, 10, 25, 30, 50, 90])
def test_a_part_of_a_step_counts_as_none(num_steps):
    """HiDiffusion's code: whole numbers of 8 / 50 and 0.4 of the steps, cut off."""
    stride, pool, _ = load_method("hidiffusion").stages[0].rectification
    first, second = int(8 / 50 * num_steps), int(0.4 * num_steps)
    call = forward(BUILD["deep"]())
    for index in range(num_steps):
        call = evolve(call, step=make_step(index, num_steps))
        assert isinstance(stride.apply(call), contextlib.nullcontext) == (index >= first)
        assert isinstance(pool.apply(call), contextlib.nullcontext) == (not first <= index < second)


@torch.inference_mode()
def acting(unet, size, *strategies):
    latents, text = question(unet, *size)
    with contextlib.ExitStack() as stack:
        for strategy in strategies:
            stack.enter_context(strategy.apply(forward(unet, 0, *size)))
        return unet(latents, torch.tensor(5), text)[0]


@pytest.mark.parametrize("name", ["sd", "sd2", "deep"])
@pytest.mark.parametrize("size", [(20, 20), (13, 18), (20, 9)], ids=str)
def test_it_is_the_network_written_out_by_hand(name, size):
    unet = exact(name)
    stride = {"sd": 0, "sd2": 0, "deep": 1}[name]
    asked = question(unet, *size)
    plain = by_hand(unet, *asked)
    for ours, reference in (
        (acting(unet, size, RAUNet()), by_hand(unet, *asked, strides=[stride])),
        (acting(unet, size, RAUNet(form="pool")), by_hand(unet, *asked, pools=[1])),
        (acting(unet, size, RAUNet(), RAUNet(form="pool")), by_hand(unet, *asked, strides=[stride], pools=[1])),
        (acting(unet, size, RAUNet(form="pool"), RAUNet()), by_hand(unet, *asked, strides=[stride], pools=[1])),
    ):
        close(ours, reference)
        assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("site", ["down_blocks.0", "down_blocks.1", "down_blocks.2"])
def test_any_level_may_be_pooled(site):
    unet, size = exact("deep"), (16, 13)
    reference = by_hand(unet, *question(unet, *size), pools=[int(site[-1])])
    close(acting(unet, size, RAUNet(form="pool", sites=[site])), reference)


@pytest.mark.parametrize("name", ["sdxl", "deep"])
def test_every_size_comes_out_as_it_went_in(name):
    unet = exact(name)
    for height in range(9, 21):
        width = 29 - height
        for form in FORMS:
            answer = changed(unet, RAUNet(form=form), height=height, width=width)
            assert answer.shape == (1, 4, height, width) and answer.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_happens_in_views_of_the_training_size(unet, form):
    for height, width in ((NATIVE, NATIVE), (4, 2 * NATIVE), (5, 7)):
        assert torch.equal(changed(unet, RAUNet(form=form), height=height, width=width), ask(unet, height, width))


@pytest.mark.parametrize(("parts", "steps"), [("rounded", 5), ("dropped", 4)])
def test_a_part_of_a_step_is_rounded_or_dropped(unet, parts, steps):
    """0.16 of 30 steps are 4.8."""
    side, acts = 4 * NATIVE, []
    for index in range(8):
        step = make_step(index=index, num_steps=30)
        acting = RAUNet(until=0.16, parts=parts).apply(evolve(forward(unet, height=side, width=side), step=step))
        acts.append(not isinstance(acting, contextlib.nullcontext))
    assert acts == [index < steps for index in range(8)]


@pytest.mark.parametrize("form", FORMS)
def test_each_forward_goes_back_to_its_own_sizes(form):
    unet = exact("deep")
    with RAUNet(form=form).apply(forward(unet)):
        both = [ask(unet, 16, 16), ask(unet, 11, 18), ask(unet, 16, 16)]
    assert torch.equal(both[0], both[2])
    assert torch.equal(both[1], changed(unet, RAUNet(form=form), height=11, width=18))


@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_as_before(form):
    unet = exact("deep")
    plain = ask(unet)
    changed(unet, RAUNet(form=form))
    assert torch.equal(ask(unet), plain)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_control_network_adds_is_refused(form):
    unet = exact("deep")
    added = {"down_block_additional_residuals": [torch.zeros(1)], "mid_block_additional_residual": torch.zeros(1)}
    refused = pytest.raises(CapabilityError, match=r"raunet changes the sizes .* control network")
    with refused, RAUNet(form=form).apply(forward(unet)):
        unet(question(unet, 16, 16)[0], torch.tensor(5), question(unet, 16, 16)[1], **added)


def test_levels_that_cannot_be_halved_are_refused():
    with pytest.raises(CapabilityError, match=r"no level with a downsampler at 'down_blocks.2'"):
        RAUNet(sites=["down_blocks.2"]).check(exact("deep"))
    with pytest.raises(ValueError, match="'mid_block' begins with no part"):
        RAUNet(sites=["mid_block"])


def test_upsamplers_that_take_no_size_are_refused():
    config = dict(tiny_unet().config)
    config |= {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
    }
    other = UNet2DConditionModel.from_config(config)
    with pytest.raises(CapabilityError, match=r"up_blocks.0.upsamplers.0 does not"):
        RAUNet().check(other)


def test_lora_layers_go_on():
    from peft import LoraConfig

    own = copy.deepcopy(exact("deep"))
    own.add_adapter(LoraConfig(r=2, target_modules=["downsamplers.0.conv", "conv1"], init_lora_weights=False))
    answer = changed(own, RAUNet())
    own.fuse_lora()
    close(changed(own, RAUNet()), answer)
