"""Samplers whose denoiser has a closed form, for laws about whole runs; no network, no weights."""

import torch
import torch.nn.functional as F
from attrs import frozen

from schedulers import new_scheduler
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.core.config.loader import Loader
from vitrail.core.method.backbone import OpaqueConditioning
from vitrail.core.method.composition import Composition
from vitrail.core.method.micro_batch import ModelOutput
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


class Prompted(OpaqueConditioning):
    """The prompt of a picture."""

    def __init__(self, prompt):
        self.prompt = prompt


@frozen(eq=False, kw_only=True)
class ColouredBackbone(AnalyticBackbone):
    """Every prompt is a colour of its own, predicted cell by cell, so that no cell's value depends on another's."""

    def condition(self, inputs, request):
        """Keep the prompt."""
        return Prompted(inputs.prompt)

    def predict(self, rows, step, timestep, conditioning):
        """Predict each row by the colour of its prompt; a negative prompt's is that of its text."""
        answers = []
        for row, (branch, (text, negative)) in enumerate(zip(rows.branches, rows.asked_with, strict=True)):
            said = negative or "" if branch == "uncond" else conditioning.prompt if text is None else text
            colour = Streams(0).normal((1, self.latent_channels, 1, 1), f"colour of {said}")
            plain = AnalyticBackbone(prior=MixturePrior(colour, VARIANCE), scheduler=self.scheduler)
            answers.append(plain.predict(rows.pick([row]), step, timestep, conditioning).model_output)
        return ModelOutput(torch.cat(answers))


def coloured_sampler(*stages, plugins=()):
    """A sampler whose pictures are, cell by cell, what the cell's prompt alone would give."""
    backbone = ColouredBackbone(
        prior=MixturePrior(torch.zeros(1, 4, 1, 1), VARIANCE),
        scheduler=new_scheduler("EulerDiscreteScheduler"),
        native_size=NATIVE,
        offers=frozenset({"vae"}),
    )
    return Sampler(backbone, composition(*stages), model="analytic", plugins=plugins)
