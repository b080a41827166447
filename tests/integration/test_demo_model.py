"""The model that ships inside: an ordinary folder, loaded as any other, whose object the masks find."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline

from often import every
from vitrail.backbones import DEMO
from vitrail.core.method.hookspecs import hookimpl
from vitrail.core.schedule.streams import Streams
from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.judge import Judge
from vitrail.demo.scenes import BASE_SIZE, OBJECTS, Placement, Scene, paste, render
from vitrail.plugins.masking.pfsa import ParameterFreeAttention, border_saliency
from vitrail.sampling.sampler import Sampler

SHIPPED = DEMO.parent


def mask_of(placement):
    """Where an object is, in latent cells, Float32["16 16"] in [0, 1]."""
    black, white = (paste(torch.full((3, BASE_SIZE, BASE_SIZE), tone), placement) for tone in (0.0, 1.0))
    return F.avg_pool2d(1 - (white - black).mean(0)[None], 8)[0]


def chance_of_order(heat, truth):
    """The chance that a cell of the object is hotter than one of the background (area under the curve)."""
    inside, outside = heat[truth > 0.5], heat[truth < 0.1]
    return (inside[:, None] > outside[None]).float().mean().item()


def test_all_parts_together_stay_under_40_mib():
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) < 40 * 2**20


def test_weights_are_safetensors_and_name_no_folder():
    assert not [f for f in SHIPPED.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert not [f for f in DEMO.rglob("*.json") if "_name_or_path" in f.read_text()]


def test_the_ordinary_pipeline_loads_and_samples_it():
    pipe = StableDiffusionPipeline.from_pretrained(DEMO)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a fox on a beach", height=BASE_SIZE, width=BASE_SIZE, num_inference_steps=2).images[0]
    assert image.size == (BASE_SIZE, BASE_SIZE)


def test_the_name_demo_is_nothing_special(tmp_path):
    shutil.copytree(DEMO, tmp_path / "copy")
    call = {"height": 128, "width": 192, "num_inference_steps": 3, "output_type": "latent"}
    by_name = Sampler.from_pretrained("demo", "asg")("a fox on a beach", **call)
    by_folder = Sampler.from_pretrained(str(tmp_path / "copy"), "asg")("a fox on a beach", **call)
    assert torch.equal(by_name.latents, by_folder.latents)


def test_pfsa_finds_the_object_of_true_pictures():
    vae = AutoencoderKL.from_pretrained(DEMO / "vae").float()
    streams, chances = Streams(5), []
    for number, background in enumerate(2 * list(BACKGROUNDS)):
        y, x, size = streams.uniform((3,), "placement", number).tolist()
        placement = Placement(OBJECTS[number], 0.5 + 0.3 * size, 0.42 + 0.16 * y, 0.42 + 0.16 * x)
        picture = render(Scene(background, (placement,)), BASE_SIZE, BASE_SIZE, streams.generator("texture", number))
        with torch.no_grad():
            latents = vae.encode(picture[None] * 2 - 1).latent_dist.mode()
        source = ParameterFreeAttention()
        heat = border_saliency(latents, source.sharpness, source.border)[0, 0]
        chances.append(chance_of_order(heat, mask_of(placement)))
    assert sum(chances) / len(chances) > 0.9


class LastMask:
    """Keeps the mask of the last step that had one."""

    mask = None

    @hookimpl(wrapper=True)
    def vitrail_mask(self):
        mask, state = yield
        self.mask = mask if mask is not None else self.mask
        return mask, state


@pytest.mark.parametrize("source", every(2, ["attention", "pfsa"]))
def test_masks_find_the_object_of_a_sampled_picture(source):
    from vitrail.sampling.methods import load_method

    chances = []
    for seed, prompt in enumerate(["a panda in a meadow", "a red apple on a wooden table", "a frog on a beach"]):
        seen = LastMask()
        method = load_method("asg-plus", [f"stages.0.masking={source}", "stages.0.until=1.0", "stages.1.until=1.0"])
        sampler = Sampler.from_pretrained("demo", method, plugins=[("seen", seen)])
        picture = sampler(prompt, height=128, width=128, seed=seed, num_inference_steps=12, output_type="pt").images[0]
        largest = max(Judge.load().detect(picture), key=lambda d: d.size)
        rows = (torch.arange(16) * 8 + 4 - largest.center_y).abs()
        cols = (torch.arange(16) * 8 + 4 - largest.center_x).abs()
        box = torch.maximum(rows[:, None], cols[None]) / (largest.size / 2)
        truth = torch.where(box < 0.5, 1.0, torch.where(box > 1.1, 0.0, 0.3))
        chances.append(chance_of_order(seen.mask[0, 0], truth))
    assert sum(chances) / len(chances) > 0.8


def test_a_sampler_of_its_loaded_backbone_takes_what_suits_it(monkeypatch):
    """A method that is tried on a model that is loaded already must not get its family's options instead."""
    whole = Sampler.from_pretrained("demo", "direct")
    again = Sampler(whole.backbone, whole.composition, model="demo", method="direct")
    seen = []
    for sampler in (whole, again):
        monkeypatch.setattr(sampler, "run", lambda config, *_, **__: seen.append(config))
        sampler("a fox on a snow field")
    assert seen[0] == seen[1]
    assert seen[0].guidance_scale == 3.0
