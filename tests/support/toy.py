"""Samplers whose denoiser has a closed form, for laws about whole runs; no network, no weights."""

import torch.nn.functional as F

from schedulers import new_scheduler
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.core.schedule.streams import Streams
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.sampler import Sampler

VARIANCE = 0.05  # of the detail
NATIVE = 8  # latent cells
FACTOR = 8  # pixels a cell
STRUCTURE = {
    "until": 0.5,
    "patching": {"type": "lattice", "interaction": "element", "key": "auto"},
    "guidance": [{"type": "async", "scale": 2.0}],
    "masking": "pfsa",
    "fusion": "scatter",
}
DETAIL = {"patching": {"type": "windows", "overlap": 0.5, "jitter": True}, "fusion": "average"}
ASG = (STRUCTURE, DETAIL)


def composition(*stages):
    return Loader(build_registry()).structure({"stages": list(stages)}, Composition, "test")


def smooth_templates(modes, side, channels=4):
    """Random smooth pictures of unit size, Float32[Tensor, "modes channels side side"]."""
    coarse = Streams(0).normal((modes, channels, 4, 4), "templates")
    smooth = F.interpolate(coarse, (side, side), mode="bicubic")
    return smooth / smooth.flatten(1).std(1)[:, None, None, None]


def toy_sampler(*stages, scheduler=None, plugins=(), templates=None):
    """ASG by default, on four smooth templates of the smallest size with white detail."""
    templates = smooth_templates(4, NATIVE) if templates is None else templates
    backbone = AnalyticBackbone(
        prior=MixturePrior(templates, VARIANCE),
        scheduler=scheduler or new_scheduler("EulerDiscreteScheduler"),
        vae_scale_factor=FACTOR,
        native_size=max(NATIVE, templates.shape[-1]),
    )
    return Sampler(backbone, composition(*(stages or ASG)), model="analytic", plugins=plugins)


def sample(sampler, size=2 * NATIVE, steps=4, **options):
    """Final latents of a square canvas of ``size`` cells."""
    call = {"height": FACTOR * size, "width": FACTOR * size, "num_inference_steps": steps, "guidance_scale": 1.0}
    return sampler("anything", output_type="latent", **(call | options)).latents
