"""Noised plain colours: around a region that is bootstrapped, and beyond the ends of a canvas.

Bootstrapping: at the first steps a region is asked with a plain colour in place of what lies outside. MultiDiffusion
(Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113), sec. 4.2: an object is laid out in the first steps, and one
whose surroundings are a plain colour is laid out within its mask. The colour changes from step to step, so that none
becomes part of the picture; as in the authors' code it is one of a few that are encoded once.

Beyond the ends: a network that was trained on squares sees one also of a picture that is narrower, filled up with one
colour and one noise throughout. ElasticDiffusion (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.core.engine.plan import COLOURS
from vitrail.core.geometry.views import Canvas

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Vae
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@define(eq=False)
class Backdrops:
    """Noised plain colours of one picture.

    Attributes:
        plan: What the run does.
        streams: The run's random streams: colours, their choice for every text and step, and their noise.
    """

    plan: RunPlan
    streams: Streams
    _colours: Tensor | None = field(default=None, init=False)
    _beyond: Tensor | None = field(default=None, init=False)

    def canvas(self, step: Step, text: int, latents: Tensor, vae: Vae | None) -> Tensor:
        """Return a plain colour with the noise of a step, Float32[Tensor, "1 channels height width"], unscaled.

        The choice depends on the region's texts and the step alone, so neither on its number nor on its place.

        Args:
            step: Position of the run.
            text: Number of the region's text.
            latents: The canvas, for shape and device.
            vae: Encodes the colours when they are first needed.
        """
        if self._colours is None:
            assert vae is not None
            self._colours = self._encoded(latents, vae, "region colours", COLOURS)
        own = self.plan.regions.placed[text - 1].region
        name = hashlib.sha256(repr((own.prompt, own.negative_prompt)).encode()).hexdigest()[:12]
        chosen = int(self.streams.uniform((1,), f"region colour of {name}", step.index) * COLOURS)
        noise = self.streams.normal((1, *latents.shape[1:]), "region noise", step.phase).to(latents.device)
        return step.alpha * self._colours[chosen, None, :, None, None] + step.sigma * noise

    def beyond(self, step: Step, shape: tuple[int, int], latents: Tensor, vae: Vae | None) -> Tensor:
        """Return the colour beyond the ends of a canvas with the noise of a step, Float32[Tensor, "1 channels *shape"].

        Args:
            step: Position of the run.
            shape: Height and width in cells.
            latents: The canvas, for channels and device.
            vae: Encodes the colour when it is first needed.
        """
        if self._beyond is None:
            assert vae is not None
            self._beyond = self._encoded(latents, vae, "background colour", 1)
        noise = self.streams.normal((1, latents.shape[1], *shape), "background noise", step.phase).to(latents.device)
        return step.alpha * self._beyond[:, :, None, None] + step.sigma * noise

    def _encoded(self, latents: Tensor, vae: Vae, name: str, count: int) -> Tensor:
        """Return the latents of random colours, Float32[Tensor, "count channels"].

        The mean over the middle of a picture of the training size, since encoders see its borders.

        Args:
            latents: The canvas, for the device.
            vae: Encodes each.
            name: Random stream of the colours.
            count: Number of colours.
        """
        import torch

        canvas = self.plan.canvas
        native, side = canvas.native, canvas.native * canvas.cell
        drawn = self.streams.uniform((count, 3), name).to(latents.device)
        picture = (2 * drawn - 1)[:, :, None, None].expand(-1, -1, side, side)
        square = Canvas(native, native, native, cell=canvas.cell)
        middle = slice(native // 4, native - native // 4)
        every = [vae.encode(one[None], square)[0, :, middle, middle].mean((-2, -1)) for one in picture]
        return torch.stack(every)
