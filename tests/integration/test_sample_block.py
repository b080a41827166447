"""A composition as a block of diffusers' modular pipelines gives the sampler's pictures."""

import inspect

import pytest
import torch
from diffusers.modular_pipelines import ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep

from parity import SIDE, TEXTS, noise, plain
from vitrail import Sampler, block_of, hookimpl
from vitrail.errors import CapabilityError, ConfigError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

CALL = {"height": SIDE, "width": 2 * SIDE, "num_inference_steps": 2, "guidance_scale": 5.0, "seed": 3}


def parts(pipe, names):
    return {name: part for name, part in pipe.components.items() if name in names and part is not None}


def modular(pipe, method="multidiffusion", **options):
    """A modular pipeline of the block alone, with a pipeline's parts."""
    made = block_of(method, type(pipe), **options).init_pipeline()
    made.update_components(**parts(pipe, made.component_names))
    return made


@pytest.mark.parametrize("family", TEXTS)
def test_a_block_gives_the_samplers_picture(family):
    pipe = plain(family)
    made = modular(pipe)(prompt="a fox", negative_prompt="fog", output_type="pt", **CALL)
    wanted = Sampler.from_pipeline(pipe, "multidiffusion")("a fox", negative_prompt="fog", output_type="pt", **CALL)
    assert isinstance(modular(pipe), ModularPipeline)
    assert torch.equal(made.get("images"), wanted.images) and torch.equal(made.get("latents"), wanted.latents)
    assert made.get("recipes") == wanted.recipes


def test_a_block_goes_on_from_what_another_block_has_encoded():
    pipe = plain("sdxl")
    blocks = {"text_encoder": StableDiffusionXLTextEncoderStep(), "sample": block_of("multidiffusion", type(pipe))}
    chain = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    chain.update_components(**parts(pipe, chain.component_names))
    images = chain(prompt="a fox", negative_prompt="fog", output="images", output_type="pt", **CALL)
    alone = modular(pipe)(prompt="a fox", negative_prompt="fog", output="images", output_type="pt", **CALL)
    torch.testing.assert_close(images, alone)


def test_a_block_loads_from_the_folder_of_its_pipeline(tmp_path):
    pipe = plain("sdxl")
    pipe.save_pretrained(tmp_path / "model")
    loaded = block_of("direct", "StableDiffusionXLPipeline").init_pipeline(str(tmp_path / "model"))
    loaded.load_components()
    call = {"prompt": "a fox", "latents": noise(pipe), "output_type": "latent"} | CALL | {"width": SIDE}
    assert torch.equal(loaded(output="images", **call), pipe(**{k: v for k, v in call.items() if k != "seed"}).images)


def test_a_block_has_the_words_of_the_samplers_call_and_no_word_of_a_model():
    names = set(block_of("direct").input_names)
    call = set(inspect.signature(Sampler.__call__).parameters) - {"self", "options", "return_dict", "spread"}
    assert call | {"strength", "wrap", "control_image"} <= names
    assert not {"model", "dtype", "method", "spread", "return_dict"} & names


def test_a_block_keeps_the_method_that_it_has_checked(tmp_path):
    file, pipe = tmp_path / "method.toml", plain("sd")
    file.write_text('stages = [{ patching = "whole", fusion = "average" }]')
    made = modular(pipe, file)
    wanted = Sampler.from_pipeline(pipe, file)("a fox", output_type="latent", **CALL)
    file.write_text("no method any more")
    state = made(prompt="a fox", output_type="latent", **CALL)
    assert torch.equal(state.get("latents"), wanted.latents) and state.get("recipes") == wanted.recipes


def test_plugins_see_the_run():
    class Probe:
        seen = 0

        @hookimpl
        def vitrail_step_end(self):
            self.seen += 1

    probe, pipe = Probe(), plain("sd")
    modular(pipe, "direct", plugins=[("probe", probe)])(prompt="a fox", output_type="latent", **CALL)
    assert probe.seen == 2


def test_what_does_not_fit_is_refused_before_a_part_is_there():
    with pytest.raises(ModelError, match="no adapter for 'FluxPipeline'"):
        block_of("direct", "FluxPipeline")
    with pytest.raises(CapabilityError, match="convolutions"):
        block_of("scalecrafter", "StableDiffusion3Pipeline")


def test_a_part_that_is_missing_is_named():
    with pytest.raises(ModelError, match=r"has no vae, unet, scheduler; call its load_components\(\)"):
        block_of("direct").init_pipeline()(prompt="a fox")


def test_a_value_that_the_call_refuses_is_refused():
    with pytest.raises(ConfigError, match="1 switches guidance off"):
        modular(plain("sd"))(prompt="a fox", **(CALL | {"guidance_scale": 0.5}))
