"""Networks that remember earlier forwards: served where each row can have a place of its own, else refused."""

import itertools
import types

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import MagCacheConfig, TaylorSeerCacheConfig, apply_mag_cache, apply_taylorseer_cache
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.cache_utils import CacheMixin

from often import every
from tiny_families import tiny_sd, tiny_sd3
from vitrail.backbones.attention.feature_caches import find_kept
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CapabilityError, ConfigError, OutOfMemory, VitrailError
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 128, "width": 96, "num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
ATTENTION = [r"transformer_blocks\.\d+\.attn"]


def first_block(network):
    apply_first_block_cache(network, FirstBlockCacheConfig(threshold=0.3))


def magnitude(network):
    config = MagCacheConfig(num_inference_steps=5, mag_ratios=[1.0] * 5, retention_ratio=0.2, max_skip_steps=1)
    apply_mag_cache(network, config)


def taylor(network):
    config = {"cache_interval": 2, "disable_cache_before_step": 2, "taylor_factors_dtype": torch.float32}
    apply_taylorseer_cache(network, TaylorSeerCacheConfig(cache_identifiers=ATTENTION, **config))


def broadcast(network):
    layers = ("transformer_blocks", "attentions")
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=layers,
        spatial_attention_timestep_skip_range=(0, 2000),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(network, config)


def faster(network):
    config = {
        "spatial_attention_block_skip_range": 2,
        "tensor_format": "BCHW",
        "current_timestep_callback": lambda: 900,
    }
    apply_faster_cache(network, FasterCacheConfig(**config))


class Deep:
    """Keeps what blocks gave, as DeepCache does: their forwards are replaced by functions that know this object."""

    def __init__(self, unet):
        self.kept, self.calls = {}, itertools.count()
        for name, block in (("down", unet.down_blocks[1]), ("mid", unet.mid_block)):
            self.wrap(name, block)

    def wrap(self, name, block):
        forward = block.forward

        def wrapped(*args, **kwargs):
            if name not in self.kept or next(self.calls) % 4 < 2:
                self.kept[name] = forward(*args, **kwargs)
            return self.kept[name]

        block.forward = wrapped


BY_NAME = {"first block": first_block, "magnitude": magnitude, "taylor": taylor}
AS_ONE = {"broadcast": broadcast, "faster": faster}


def sd3(cache=None):
    """With a last block that gives its text on, as diffusers' first-block cache wants it."""
    pipe = tiny_sd3()
    torch.manual_seed(8)
    pipe.transformer.transformer_blocks[-1] = JointTransformerBlock(32, 4, 8, context_pre_only=False).eval()
    if cache is not None:
        cache(pipe.transformer)
    return pipe


def latents(pipe, method="multidiffusion", **call):
    return Sampler.from_pipeline(pipe, method)("a fox", **(CALL | call)).latents


def by_hand(pipe, seed=0):
    """Average of windows, every view and branch in a context of its own."""
    sampler, calls = Sampler.from_pipeline(pipe, "multidiffusion"), 0
    config = RunConfig(prompt="a fox", **{k: v for k, v in CALL.items() if k != "output_type"})
    engine = sampler.engine(config, seed)
    stepper, canvas = engine.plan.phases[0].stepper, engine.plan.canvas
    with torch.no_grad():
        cond, uncond, pooled, no_pooled = pipe.encode_prompt("a fox", None, None, device="cpu")
        texts = {"uncond": (uncond, no_pooled), "cond": (cond, pooled)}
        canvas_latents = engine.streams.normal((1, 16, canvas.height, canvas.width), "initial-latents")
        for step in engine.plan.steps():
            total, count = torch.zeros_like(canvas_latents), torch.zeros_like(canvas_latents)
            for view in engine.plan.patches(step)[0].views:
                said = {}
                for branch, (text, pool) in texts.items():
                    with CacheMixin.cache_context(pipe.transformer, f"{view} {branch}"):
                        said[branch] = pipe.transformer(
                            view.read(canvas_latents),
                            timestep=stepper.timestep(step).expand(1),
                            encoder_hidden_states=text,
                            pooled_projections=pool,
                            return_dict=False,
                        )[0]
                    calls += 1
                view.add_to(total, said["uncond"] + CALL["guidance_scale"] * (said["cond"] - said["uncond"]))
                view.add_to(count, torch.ones(view.shape))
            canvas_latents = stepper.step(total / count, step.phase_step, canvas_latents, None)
    assert calls > 2 * CALL["num_inference_steps"], "one view would show nothing"
    return canvas_latents


@pytest.mark.parametrize("cache", BY_NAME)
def test_a_cache_with_contexts_is_served_by_one_for_each_view_and_branch(cache):
    found = latents(sd3(BY_NAME[cache]))
    assert torch.equal(found, by_hand(sd3(BY_NAME[cache])))
    assert not torch.equal(found, latents(sd3())), "the cache never came into play"


@pytest.mark.parametrize("cache", every(3, BY_NAME))
def test_the_picture_depends_on_neither_row_batch_nor_ranks_nor_earlier_runs(cache):
    pipe = sd3(BY_NAME[cache])
    first = latents(pipe)
    assert torch.equal(latents(pipe), first)
    assert torch.equal(latents(pipe, row_batch=1), first) and torch.equal(latents(pipe, row_batch=7), first)
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    both = sampler("a fox", num_images=2, **CALL).latents
    assert torch.equal(both[:1], first) and torch.equal(both[1:], latents(pipe, seed=1))

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        return own("a fox", row_batch=2, spread=Spread(communicator=communicator), **CALL).latents

    for world_size in (2, 3):
        ranks = InProcess(timeout=600).run(world_size, program)
        assert all(torch.equal(rank, first) for rank in ranks)


def test_no_trace_is_left_on_the_network():
    pipe = sd3(taylor)
    before = {name: set(vars(module)) for name, module in pipe.transformer.named_modules()}
    latents(pipe)
    assert {name: set(vars(module)) for name, module in pipe.transformer.named_modules()} == before
    managers = [hook.state_manager for hook in hooks_of(pipe.transformer)]
    assert managers and all(not manager._state_cache and manager._context is None for manager in managers)


def hooks_of(network):
    registries = [vars(m)["_diffusers_hook"] for m in network.modules() if "_diffusers_hook" in vars(m)]
    return [hook for registry in registries for hook in registry.hooks.values()]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("cache", AS_ONE)
def test_a_cache_with_one_place_for_all_is_refused_with_several_views(cache):
    pipe = tiny_sd3()
    AS_ONE[cache](pipe.transformer)
    with pytest.raises(CapabilityError, match=r"remembers earlier forwards \(.*Hook in .*one place for all.*'direct'"):
        latents(pipe)


def test_a_replaced_forward_that_can_remember_is_refused_with_several_views():
    pipe = tiny_sd()
    Deep(pipe.unet)
    with pytest.raises(CapabilityError, match=r"the replaced forward of .*_block.*helper\.disable\(\)"):
        latents(pipe)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("cutdiffusion", "exchanges the pixels of its views"),
        ("syncdiffusion", "differentiates"),
        ("upsample-guidance", "asks the network besides the views|views, or the branches"),
    ],
)
def test_a_method_whose_rows_do_not_come_again_is_refused(method, why):
    pipe = tiny_sd()
    config = {"cache_interval": 2, "disable_cache_before_step": 1, "cache_identifiers": [r".*attn1"]}
    apply_taylorseer_cache(pipe.unet, TaylorSeerCacheConfig(**config))
    with pytest.raises(VitrailError, match=why):
        latents(pipe, method, height=128, width=128)


def test_windows_that_move_are_refused():
    from vitrail.sampling.methods import load_method

    with pytest.raises(CapabilityError, match="are others at every step: use one whose views stay"):
        latents(sd3(taylor), load_method("multidiffusion", ["stages.0.patching.jitter=true"]))


def test_a_checkpoint_is_refused(tmp_path):
    spread = Spread(checkpoint=tmp_path / "kept.safetensors")
    with pytest.raises(ConfigError, match="which a checkpoint does not hold"):
        latents(sd3(taylor), spread=spread)


def test_what_does_not_fit_is_not_cut_and_tried_again():
    pipe, calls = sd3(taylor), itertools.count()

    def short(module, arguments):
        if next(calls) == 5:
            raise MemoryError("out of memory")

    pipe.transformer.register_forward_pre_hook(short)
    with pytest.raises(OutOfMemory, match="remembers earlier forwards, so that it cannot be cut"):
        latents(pipe)


# ---------------------------------------------------------------- a single view


def plain(pipe, start):
    call = {key: value for key, value in CALL.items() if key not in ("height", "width")}
    return pipe("a fox", height=64, width=64, latents=start, **call).images


@pytest.mark.parametrize("family", [tiny_sd, tiny_sd3])
def test_direct_is_the_plain_pipeline_with_its_cache(family):
    channels = 16 if family is tiny_sd3 else 4
    start = torch.randn((1, channels, 8, 8), generator=torch.Generator().manual_seed(2))
    pipe, twin, bare = family(), family(), family()
    for one in (pipe, twin):
        broadcast(one.transformer if family is tiny_sd3 else one.unet)
    call = {"height": 64, "width": 64, "latents": start}
    theirs = plain(twin, start)
    assert torch.equal(latents(pipe, "direct", **call), theirs)
    assert torch.equal(latents(pipe, "direct", **call), theirs), "what an earlier run left must not count"
    assert not torch.equal(plain(bare, start), theirs), "the cache never came into play"


def test_direct_is_the_plain_pipeline_with_replaced_forwards():
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    pipe, twin = tiny_sd(), tiny_sd()
    for one in (pipe, twin):
        Deep(one.unet)
    assert torch.equal(latents(pipe, "direct", height=64, width=64, latents=start), plain(twin, start))


def test_direct_wants_its_branches_in_one_forward_and_on_one_rank():
    pipe = tiny_sd()
    broadcast(pipe.unet)
    with pytest.raises(CapabilityError, match="2 branches in one forward: raise row_batch to 2"):
        latents(pipe, "direct", height=64, width=64, row_batch=1)
    sampler = Sampler.from_pipeline(pipe, "direct")

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        return own("a fox", spread=Spread(communicator=communicator), **CALL)

    with pytest.raises(CapabilityError, match="a single view and rank"):
        InProcess(timeout=600).run(2, program)


# ---------------------------------------------------------------- what remembers, and what does not


def test_a_replaced_forward_that_reaches_nothing_but_modules_is_served():
    pipe, plain_pipe = tiny_sd(), tiny_sd()
    block, scale = pipe.unet.mid_block, 1.0
    forward = block.forward

    def scaled(*args, **kwargs):
        return forward(*args, **kwargs) * scale

    block.forward = scaled
    assert find_kept(pipe.unet) is None
    assert torch.equal(latents(pipe), latents(plain_pipe))


class Counter:
    def __init__(self, module):
        self.module, self.calls = module, 0

    def forward(self, *args):
        self.calls += 1
        return type(self.module).forward(self.module, *args)


@pytest.mark.parametrize(
    ("replace", "keeps"),
    [
        (lambda module: Counter(module).forward, True),
        (lambda module: Counter(module), True),
        (lambda module: types.MethodType(type(module).forward, module), False),
        (lambda module, kept={}: lambda x: kept.setdefault(1, x), True),
        (lambda module, by=2.0: lambda x: x * by, False),
    ],
)
def test_a_replaced_forward_can_remember_if_it_reaches_what_can_change(replace, keeps):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert find_kept(network) is None
    network[0].forward = replace(network[0])
    assert (find_kept(network) is not None) == keeps


def test_offload_layerwise_casting_and_compiling_remember_nothing():
    pipe = tiny_sd()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    assert find_kept(pipe.unet) is None
    pipe = tiny_sd()
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert find_kept(pipe.unet) is None
    assert find_kept(torch.compile(tiny_sd().unet)) is None
    unet = tiny_sd().unet
    unet.compile_repeated_blocks()
    assert find_kept(unet) is None
