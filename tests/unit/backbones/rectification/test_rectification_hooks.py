"""When changes inside the network act, in whose forward, what is refused, and that nothing stays."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from rectified import BUILD, STRATEGIES, ask, built, changed, forward
from vitrail.backbones.rectification.attention_scale import AttentionScale, self_attentions
from vitrail.backbones.rectification.freeu import FreeU
from vitrail.backbones.rectification.module_hooks import Hook, attached
from vitrail.backbones.rectification.scope import choose, within
from vitrail.core.method.composition import Composition
from vitrail.core.method.stage import Stage
from vitrail.errors import CapabilityError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.testing import Traces, make_step


@pytest.fixture(params=BUILD)
def unet(request):
    """Shared by the tests of a session: what one leaves in it is found by the others."""
    return built(request.param)


@pytest.fixture
def own():
    """A U-Net for one test alone."""
    return copy.deepcopy(built("deep"))


# when


NEUTRAL = [FreeU(b=[1, 1], s=[1, 1]), FreeU(b=[1, 1], s=[1, 1], version="v2")]
RESTING = [cls(start=0.5, until=0.8) for cls in (AttentionScale, FreeU)]


@pytest.mark.parametrize("strategy", [*NEUTRAL, *RESTING], ids=repr)
def test_neutral_values_and_other_steps_are_its_absence(unet, strategy):
    assert torch.equal(changed(unet, strategy, index=2), ask(unet))


@pytest.mark.parametrize("cls", [AttentionScale, FreeU])
def test_it_acts_in_its_share_of_the_run(own, cls):
    plain, acting = ask(own), changed(own, cls())
    assert not torch.equal(plain, acting)
    for index in range(10):
        expected = acting if 3 <= index < 6 else plain
        assert torch.equal(changed(own, cls(start=0.3, until=0.6), index=index), expected)


@given(total=st.integers(1, 60), cut=st.floats(0.01, 0.99))
def test_ranges_that_meet_share_no_step_and_leave_none_out(total, cut):
    steps = [make_step(index, total, sigma=0.5, alpha=0.5) for index in range(total)]
    assert all(within(step, 0.0, cut) + within(step, cut, 1.0) == 1 for step in steps)
    stage = Stage(patching=Whole(), fusion=Average(), masking=NoMask())
    (end, _) = Composition(stages=[evolve(stage, until=cut), stage]).boundaries(total)
    assert sum(within(step, 0.0, cut) for step in steps) == end


# in whose forward, and what stays


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_nothing_stays(unet, strategy):
    before, processors = Traces.of(unet), dict(unet.attn_processors)
    changed(unet, strategy)
    before.check(unet)
    assert all(processor is processors[name] for name, processor in unet.attn_processors.items())


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_nothing_stays_of_a_forward_that_raises(unet, strategy):
    before, plain = Traces.of(unet), ask(unet)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), strategy.apply(forward(unet)):
        ask(unet, width_of_text=7)
    before.check(unet)
    assert torch.equal(ask(unet), plain)


def test_nothing_stays_of_hooks_that_cannot_be_set(own):
    before = Traces.of(own)
    hooks = [Hook("conv_in", own.conv_in, after=print), Hook("conv_out", None, after=print)]
    with pytest.raises(AttributeError), attached(own, hooks, "a test"):
        pass
    before.check(own)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_thread_changes_its_own_forwards_alone(own, strategy):
    """Both threads are in the network at once, one with the change and one without."""
    plain, acting = ask(own), changed(own, strategy)
    meet, seen = threading.Barrier(2, timeout=600), {"plain": [], "acting": []}

    def run(name, call):
        for _ in range(8):
            meet.wait()
            seen[name].append(call())

    threads = [
        threading.Thread(target=run, args=("plain", lambda: ask(own))),
        threading.Thread(target=run, args=("acting", lambda: changed(own, strategy))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen["plain"]) == len(seen["acting"]) == 8
    assert all(torch.equal(one, plain) for one in seen["plain"])
    assert all(torch.equal(one, acting) for one in seen["acting"])


def test_a_hook_is_silent_in_another_thread(own):
    """Even while it is there."""
    plain, seen = ask(own), []
    with FreeU().apply(forward(own)):
        thread = threading.Thread(target=lambda: seen.append(ask(own)))
        thread.start()
        thread.join()
        ask(own)
    assert torch.equal(seen[0], plain)


# what is refused


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (FreeU(sites=["up_blocks.0", "up_blocks.9"]), r"'up_blocks.9' \(did you mean 'up_blocks.\d'\?\).*up_blocks.2$"),
        (FreeU(sites=["up_blocks.0.resnet.0"], b=[1], s=[1]), r"did you mean 'up_blocks.0.resnets.0'"),
        (FreeU(sites=["up_blocks", "up_blocks.1"]), r"more than one site stands for up_blocks.1.resnets.0, up_blo"),
        (FreeU(sites=["up_blocks.1", "up_blocks.1"]), r"more than one site stands for up_blocks.1.resnets.0, up_blo"),
        (
            AttentionScale(sites=["down_blocks.0"]),
            r"no self-attention at 'down_blocks.0' \(did you mean 'down_blocks.\d'",
        ),
        (
            AttentionScale(sites=["mid_block", "up_blocks.2"]),
            r"some in: down_blocks.1, down_blocks.2, mid_block, up_bl",
        ),
    ],
    ids=repr,
)
def test_sites_that_are_not_there_are_refused(strategy, told):
    with pytest.raises(CapabilityError, match=told):
        strategy.check(built("deep"))


@pytest.mark.parametrize(
    ("cls", "options", "told"),
    [
        (FreeU, {"b": [1.1]}, r"'b' and 's' need a value for each of the 2 sites, got 1 and 2"),
        (FreeU, {"s": [-1, 1]}, r"must be >= 0"),
        (FreeU, {"sites": ["mid_block"], "b": [1], "s": [1]}, r"'mid_block' begins with no part of a network"),
        (AttentionScale, {"sites": ["upblocks.0"]}, r"'upblocks.0' begins .* \(did you mean 'up_blocks'\?\)"),
        (AttentionScale, {"start": 0.5, "until": 0.5}, r"'until' must be more than 'start' \(0.5\) and at most 1"),
        (AttentionScale, {"until": 1.5}, r"at most 1, got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(cls, options, told):
    with pytest.raises(ValueError, match=told):
        cls(**options)


def test_a_star_stands_for_one_part():
    places = ["up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.1.resnets.0", "mid_block.resnets.0"]
    assert choose(places, ["up_blocks.*.resnets.0"], "x") == {"up_blocks.*.resnets.0": [places[0], places[2]]}
    assert choose(places, ["*"], "x") == {"*": places}
    assert choose(places, ["up_blocks.1", "mid_block"], "x") == {"up_blocks.1": [places[2]], "mid_block": [places[3]]}
    with pytest.raises(CapabilityError, match="no block"):
        choose([], ["*"], "x")


def test_fused_projections_are_refused(own):
    own.fuse_qkv_projections()
    with pytest.raises(CapabilityError, match=r"down_blocks.1.attentions.0.*are fused"):
        AttentionScale().check(own)
    own.unfuse_qkv_projections()
    AttentionScale().check(own)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_compiled_networks_are_refused(own, strategy):
    with pytest.raises(CapabilityError, match=r"inside a network that torch.compile"):
        strategy.check(torch.compile(own, backend="eager"))
    with (
        pytest.raises(CapabilityError, match="inside a network that"),
        strategy.apply(forward(torch.compile(own, backend="eager"))),
    ):
        pass
    strategy.check(own)
    own.up_blocks[1].compile(backend="eager")
    with pytest.raises(CapabilityError, match=r"inside up_blocks.1 that torch.compile"):
        strategy.check(own)


def test_what_is_compiled_elsewhere_is_of_no_concern(own):
    for layer in self_attentions(own):
        layer.attention.compile(backend="eager")
    FreeU().check(own)


def test_a_change_that_did_not_take_place_is_told(own):
    class Deaf:
        def __call__(self, attention, hidden_states, encoder_hidden_states=None, **rest):
            return hidden_states

    own.down_blocks[1].attentions[0].transformer_blocks[0].attn1.set_processor(Deaf())
    with pytest.raises(
        CapabilityError, match=r"attention-scale did not take place: .* down_blocks.1.attentions.0.*to_q"
    ):
        changed(own, AttentionScale())


# what else is in the network


def test_lora_layers_are_scaled_as_a_whole(own):
    from peft import LoraConfig

    own.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    own.to(torch.float64)
    acting = changed(own, AttentionScale())
    assert not torch.equal(acting, ask(own))
    own.fuse_lora()
    torch.testing.assert_close(changed(own, AttentionScale()), acting)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_offloaded_networks_are_changed_alike(own, strategy):
    from accelerate import cpu_offload

    expected = changed(own, strategy)
    cpu_offload(own, execution_device=torch.device("cpu"))
    forwards = [module.forward for module in own.modules()]
    assert torch.equal(changed(own, strategy), expected)
    assert [module.forward for module in own.modules()] == forwards


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_ip_adapters_go_on(own, strategy):
    """Their processors sit in cross-attention; with a weight of 0 they are not there."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    expected, width = changed(own, strategy), own.config.cross_attention_dim
    outputs = {}
    for scale in (0.0, 1.0):
        for name, module in own.named_modules():
            if name.endswith("attn2"):
                processor = IPAdapterAttnProcessor2_0(module.to_q.in_features, width, num_tokens=(2,), scale=scale)
                module.set_processor(processor)
        own.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, width, 2)])
        own.config.encoder_hid_dim_type = "ip_image_proj"
        processors = dict(own.attn_processors)
        outputs[scale] = changed(own, strategy, image_embeds=[torch.ones(1, 1, 6)])
        assert own.attn_processors == processors
    assert torch.equal(outputs[0.0], expected)
    assert not torch.equal(outputs[1.0], expected)


# what the slot carries


@frozen(kw_only=True)
class Dilated:
    """A convolution with holes, from the plain one: each phase of the pixels is a picture of its own."""

    needs = frozenset({"convolutions"})
    site: str
    dilation: int = 2

    def check(self, network):
        network.get_submodule(self.site)

    def apply(self, forward):
        d, size = self.dilation, []

        def spread(module, args, kwargs):
            height, width = args[0].shape[-2:]
            size[:] = height, width
            padded = F.pad(args[0], (0, -width % d, 0, -height % d))
            return (torch.cat([padded[..., y::d, x::d] for y in range(d) for x in range(d)]), *args[1:]), kwargs

        def collect(module, args, kwargs, output):
            phases = output.unflatten(0, (d, d, -1))
            whole = phases.permute(2, 3, 4, 0, 5, 1).flatten(4).flatten(2, 3)
            return whole[..., : size[0], : size[1]]

        conv = forward.network.get_submodule(self.site)
        return attached(forward.network, [Hook(self.site, conv, spread, collect)], "dilated")


@pytest.mark.parametrize("size", [(16, 16), (13, 10)])
def test_a_dilated_convolution_fits_in(own, size):
    site, own = "mid_block.resnets.0.conv1", own.to(torch.float64)
    ours = changed(own, Dilated(site=site), height=size[0], width=size[1])
    conv = own.get_submodule(site)
    conv.dilation = conv.padding = (2, 2)
    torch.testing.assert_close(ours, ask(own, *size))


def test_a_rectification_may_ask_the_network_again(own):
    """As guidance by a smaller picture does; the inner call is not changed in its turn."""
    inside, plain = [], ask(own)

    def mixed(module, args, kwargs, output):
        if inside:
            return None
        inside.append(True)
        again = module(*args, **kwargs)[0]
        inside.clear()
        return (output[0] + again,)

    with attached(own, [Hook("", own, after=mixed)], "twice"):
        assert torch.equal(ask(own), 2 * plain)
