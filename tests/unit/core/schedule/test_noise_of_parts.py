"""Parts of a pipeline that draw noise by themselves: it comes from the run's seed, or the part is refused."""

import pytest
import torch
from diffusers import ConsistencyDecoderVAE, EulerDiscreteScheduler
from torch import nn

from schedulers import READ, new_scheduler
from tiny import tiny_pipeline
from tiny_families import tiny_t5
from vitrail.cli.decode import _picture
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.core.schedule import scheduler_noise as own_noise
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError, VitrailError
from vitrail.sampling.sampler import Sampler, Spread

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

CALL = {"height": 128, "width": 64, "num_inference_steps": 2, "output_type": "pt"}


def consistency_vae():
    """A decoder that samples, small enough to run; eight pixels a cell."""
    torch.manual_seed(4)
    widths = (8, 8, 8, 8)
    return ConsistencyDecoderVAE(
        encoder_block_out_channels=widths,
        encoder_norm_num_groups=4,
        encoder_layers_per_block=1,
        decoder_block_out_channels=(32, 32, 32, 32),
        decoder_layers_per_block=1,
    ).eval()


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.vae = consistency_vae()
    return pipe


def picture(pipe, seed=0, **call):
    (image,) = Sampler.from_pipeline(pipe, "multidiffusion")("a fox", seed=seed, **(CALL | call)).images
    return image


def test_the_decoder_draws_from_the_seed_of_the_picture(pipe):
    first = picture(pipe)
    torch.manual_seed(99)
    assert torch.equal(picture(pipe), first)
    latents = torch.randn((1, 4, 16, 8), generator=torch.Generator().manual_seed(1))
    same_latents = {"latents": latents, "num_inference_steps": 1, "guidance_scale": 1.0}
    one, other = (picture(pipe, seed=seed, **same_latents) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_every_rank_decodes_the_same_picture(pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        return own("a fox", seed=0, spread=Spread(communicator=communicator), **CALL).images[0]

    with torch.inference_mode():
        ranks = InProcess(timeout=600).run(2, program)
    assert all(torch.equal(rank, picture(pipe)) for rank in ranks)


def test_several_pictures_each_draw_for_themselves(pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    both = sampler("a fox", seed=5, num_images=2, **CALL).images
    assert all(torch.equal(image, picture(pipe, seed=5 + number)) for number, image in enumerate(both))


def test_kept_latents_are_decoded_to_the_picture_of_the_run(pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    whole = sampler("a fox", seed=3, **(CALL | {"output_type": "pil"}))
    run = RunConfig(prompt="a fox", height=128, width=64, seed=3)
    assert _picture(sampler.backbone, run, whole.latents, None).tobytes() == whole.images[0].tobytes()


def test_a_picture_that_grows_by_way_of_pixels_is_made_again(pipe):
    def grown():
        sampler = Sampler.from_pipeline(pipe, "diffusehigh")
        return sampler("a fox", height=128, width=128, num_inference_steps=3, output_type="latent").latents

    first = grown()
    torch.manual_seed(99)
    assert torch.equal(grown(), first)


def test_it_is_the_plain_decode_with_that_generator(pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    result = sampler("a fox", seed=3, **CALL)
    with torch.no_grad():
        scaled = result.latents / pipe.vae.config.scaling_factor
        decoded = pipe.vae.decode(scaled, generator=Streams(3).generator("decoder-noise")).sample
    assert torch.equal(result.images[0], (decoded / 2 + 0.5).clamp(0, 1)[0])


def test_a_method_that_differentiates_refuses_a_decoder_that_draws_noise(pipe):
    with pytest.raises(CapabilityError, match="ConsistencyDecoderVAE draws noise at every decode"):
        Sampler.from_pipeline(pipe, "syncdiffusion")("a fox", height=128, width=128, num_inference_steps=1)


# ---------------------------------------------------------------- schedulers


class DrawsAlone(EulerDiscreteScheduler):
    """Takes a generator and does not ask it."""

    def step(self, model_output, timestep, sample, generator=None, **options):
        stepped = super().step(model_output, timestep, sample, generator=generator, **options)
        return (stepped[0] + 0.1 * torch.randn(sample.shape),)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_scheduler_that_draws_what_no_seed_decides_is_refused_before_the_run(mode):
    state = torch.get_rng_state()
    with mode(), pytest.raises(CapabilityError, match=r"DrawsAlone draws noise \(aten\.randn\.default\)"):
        Stepper(DrawsAlone(), 4)
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", READ)
def test_schedulers_are_left_as_they_were_by_the_look_at_their_noise(name):
    own_noise._checked.clear()
    looked_at, not_again = Stepper(new_scheduler(name), 4), Stepper(new_scheduler(name), 4)
    first, second = looked_at.state(), not_again.state()
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True)
        else:
            assert repr(value) == repr(second[key]), key


# ---------------------------------------------------------------- dropout


def test_a_text_encoder_that_drops_values_is_refused():
    pipe = tiny_t5()
    pipe.text_encoder_3.train()
    with pytest.raises(
        CapabilityError, match=r"text_encoder_3 is in training mode.*call pipe\.text_encoder_3\.eval\(\)"
    ):
        Sampler.from_pipeline(pipe, "multidiffusion")("a fox", **CALL)
    pipe.text_encoder_3.eval()
    Sampler.from_pipeline(pipe, "multidiffusion")("a fox", **CALL)


def test_every_part_that_drops_values_is_named():
    pipe = tiny_pipeline()
    pipe.unet.conv_in = nn.Sequential(pipe.unet.conv_in, nn.Dropout(0.1))
    pipe.vae.quant_conv = nn.Sequential(pipe.vae.quant_conv, nn.Dropout2d(0.2))
    pipe.unet.train()
    pipe.vae.train()
    with pytest.raises(VitrailError) as told:
        Sampler.from_pipeline(pipe, "direct")("a fox", height=64, width=64, num_inference_steps=1)
    assert "pipe.unet.eval()" in str(told.value) and "pipe.vae.eval()" in str(told.value)


def test_training_mode_without_dropout_is_no_matter():
    pipe = tiny_pipeline()
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
    plain = Sampler.from_pipeline(pipe, "direct")("a fox", **call).latents
    pipe.unet.train()
    assert torch.equal(Sampler.from_pipeline(pipe, "direct")("a fox", **call).latents, plain)
