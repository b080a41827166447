"""A user's pipeline with its networks elsewhere, compiled or in another type: the picture stays the same."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adapters import ADAPTERS, CPU, control_network, image_encoder, inversion, ip_adapter, lora_layers, modules, picture
from parity import CALL, SIDE, TEXTS, noise, ours, wrap
from tiny import in_double, one_block_unet
from tiny_families import FAMILIES
from vitrail.backbones import DEMO

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

PAGE = Path(__file__).parents[2] / "docs/how-to/your-pipeline.md"
OFFLOADS = ("model offload", "sequential offload", "group offload")


# ---------------------------------------------------------------- offload


@pytest.mark.parametrize("kind", OFFLOADS)
@pytest.mark.parametrize("family", TEXTS)
def test_offload_before_wrapping_or_after_keeps_the_picture(family, kind):
    pipe = FAMILIES[family]()
    sampler = wrap(pipe)
    before = sampler("a fox", **(CALL | {"output_type": "pt"}))
    places = {name: [value.device for value in part.parameters()] for name, part in modules(pipe).items()}
    ADAPTERS[kind](pipe)
    away = {name: [value.device for value in part.parameters()] for name, part in modules(pipe).items()}
    assert (away != places) == (kind == "sequential offload")
    for each in (sampler, wrap(pipe)):
        after = each("a fox", **(CALL | {"output_type": "pt"}))
        assert torch.equal(after.latents, before.latents) and torch.equal(after.images[0], before.images[0])
        assert each.backbone.device == CPU
    assert {name: [value.device for value in part.parameters()] for name, part in modules(pipe).items()} == away


def test_weights_that_wait_on_disk(tmp_path):
    pipe = FAMILIES["sd"]()
    sampler = wrap(pipe)
    before = ours(sampler, pipe)
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    assert torch.equal(ours(sampler, pipe), before)
    assert list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", OFFLOADS)
def test_a_large_picture_is_decoded_and_encoded_under_hooks(kind):
    """Whole instead of in strips, so in another order."""
    pipe = in_double(FAMILIES["sd"]())
    sampler, call = wrap(pipe, "multidiffusion"), {"num_inference_steps": 2, "output_type": "pt", "strength": 0.5}
    sizes = {"height": 2 * SIDE, "width": SIDE, "image": picture(48)}
    before = sampler("a fox", **call, **sizes)
    ADAPTERS[kind](pipe)
    after = sampler("a fox", **call, **sizes)
    assert torch.equal(after.latents, before.latents)
    torch.testing.assert_close(after.images[0], before.images[0])


# ---------------------------------------------------------------- compiled, other layouts, other types


def test_a_compiled_network_gives_the_same_picture_and_the_same_maps():
    pipe = FAMILIES["sd"]()
    pipe.unet = one_block_unet()
    pipe = in_double(pipe)
    call = {"guidance_scale": 1.0, "row_batch": 1}
    large = CALL | call | {"height": 2 * SIDE, "num_inference_steps": 2}
    sampler, guided = wrap(pipe), wrap(pipe, "asg")
    before, masked = ours(sampler, pipe, **call), guided("a fox", **large).latents
    loose = pipe.unet
    pipe.unet = torch.compile(loose, backend="eager")
    torch.testing.assert_close(ours(sampler, pipe, **call), before)
    torch.testing.assert_close(guided("a fox", **large).latents, masked)
    torch.testing.assert_close(ours(wrap(pipe), pipe, **call), before)
    pipe.unet = loose
    loose.compile(backend="eager")
    torch.testing.assert_close(ours(sampler, pipe, **call), before)
    torch.testing.assert_close(guided("a fox", **large).latents, masked)


@pytest.mark.slow
def test_a_network_that_is_compiled_ahead_of_time_gives_the_same_picture():
    pipe, call = in_double(FAMILIES["sd"]()), {"guidance_scale": 1.0, "row_batch": 1}
    sampler = wrap(pipe)
    before = ours(sampler, pipe, **call)
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    torch.testing.assert_close(ours(sampler, pipe, **call), before)


def test_channels_last_gives_the_same_picture():
    pipe = in_double(FAMILIES["sd"]())
    sampler, call = wrap(pipe, "asg"), CALL | {"output_type": "pt", "height": 2 * SIDE}
    before = sampler("a fox", **call)
    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)
    after = sampler("a fox", **call)
    torch.testing.assert_close(after.latents, before.latents)
    torch.testing.assert_close(after.images[0], before.images[0])
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", TEXTS)
def test_networks_in_half_precision_sample_on_a_canvas_in_float32(family, dtype):
    pipe, seen = FAMILIES[family](), []
    sampler, call = wrap(pipe), CALL | {"output_type": "pt"}
    before = sampler("a fox", **call)
    pipe.to(dtype)

    def look(caller, index, timestep, state):
        seen.append(state["latents"].dtype)

    after = sampler("a fox", callback_on_step_end=look, **call)
    assert seen == [torch.float32] * 3
    assert after.latents.isfinite().all() and after.images[0].isfinite().all()
    assert float((after.latents - before.latents).abs().max()) < 0.1 * float(before.latents.abs().max())
    assert {value.dtype for part in modules(pipe).values() for value in part.parameters()} == {dtype}


def test_a_vae_that_overflows_in_float16_decodes_in_float32():
    pipe = FAMILIES["sdxl"]()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(3e4)
    sampler, call = wrap(pipe), CALL | {"output_type": "pt"}
    before = sampler("a fox", **call)
    pipe.to(torch.float16)
    latents = before.latents.half() / pipe.vae.config.scaling_factor
    assert not pipe.vae.decode(latents).sample.isfinite().all()
    after = sampler("a fox", **call)
    assert after.images[0].isfinite().all() and pipe.vae.dtype == torch.float16
    assert float((after.images[0] - before.images[0]).abs().mean()) < 0.05


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6),
        lambda pipe: pipe.enable_attention_slicing(1),
        lambda pipe: pipe.fuse_qkv_projections(),
        lambda pipe: pipe.vae.enable_tiling(),
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32),
    ],
)
def test_other_switches_of_a_pipeline_count(change):
    pipe = FAMILIES["sd"]()
    sampler = wrap(pipe)
    change(pipe)
    call = {"output_type": "pt", "latents": noise(pipe)}
    plain_picture = pipe("a fox", **(CALL | call)).images[0]
    assert torch.equal(sampler("a fox", **(CALL | call)).images[0], plain_picture)


# ---------------------------------------------------------------- the page about all this


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """What the page loads, for the model that ships inside, in the folder where it runs."""
    monkeypatch.chdir(tmp_path)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(DEMO)
    pipe.save_lora_weights("style", unet_lora_layers=lora_layers(pipe.unet, ["to_q"], seed=1))
    save_file({"<fur>": inversion(pipe.text_encoder, 2)}, "fur.safetensors")
    image_encoder().save_pretrained("ip-adapter/models/image_encoder")
    parts = ip_adapter(pipe.unet).items()
    flat = {f"{part}.{name}": value for part, values in parts for name, value in values.items()}
    save_file(flat, "ip-adapter/models/ip-adapter.safetensors")
    control_network(pipe.unet).save_pretrained("edges")
    picture(64).save("photo.png")
    picture(64).save("edges.png")
    return tmp_path


def test_the_code_of_the_page_runs(brought):
    names, blocks = {}, re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    with Image.open("fox.png") as made:
        assert len(blocks) == 4 and made.size == (192, 128)
