"""Denoisers in closed form: the oracle of the test suite, for any scheduler and prediction type."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor

from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.core.method.backbone import OpaqueConditioning
from vitrail.core.method.inputs import Inputs
from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import Step

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.streams import Streams


@frozen(eq=False)
class MixturePrior:
    """A mixture of templates with white Gaussian detail, whose posterior mean is exact.

    Attributes:
        templates: Float32[Tensor, "modes channels h w"]; "1 channels 1 1" makes an element-wise denoiser.
        variance: Variance of the detail.
    """

    templates: Tensor
    variance: float

    def posterior_mean(self, noisy: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return E[x0 | alpha x0 + sigma n], Float32[Tensor, "rows channels h w"].

        Args:
            noisy: Float32[Tensor, "rows channels h w"].
            alpha: Signal scale.
            sigma: Noise scale.
        """
        total = alpha**2 * self.variance + sigma**2
        rest = noisy[:, None] - alpha * self.templates[None]
        score = -rest.square().flatten(2).sum(-1) / (2 * total)
        weight = score.softmax(1)[:, :, None, None, None]
        gain = alpha * self.variance / total
        return (weight * (self.templates[None] + gain * rest)).sum(1)


@frozen(eq=False, kw_only=True)
class AnalyticBackbone:
    """A backbone whose denoiser is the posterior mean of a known prior."""

    prior: MixturePrior
    scheduler: Scheduler
    latent_channels: int = 4
    vae_scale_factor: int = 8
    native_size: int = 16
    offers: frozenset[str] = field(default=frozenset())
    defaults: ClassVar[Mapping[str, object]] = {}
    max_view: ClassVar[None] = None
    network: ClassVar[None] = None
    pipeline: ClassVar[None] = None
    callback_inputs: ClassVar[tuple[str, ...]] = ("latents",)

    @property
    def device(self) -> torch.device:
        """Device of the templates."""
        return self.prior.templates.device

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """Return a copy of the given scheduler; ``name`` is ignored."""
        return copy.deepcopy(self.scheduler)

    def timestep_options(self, scheduler: Scheduler, height: int, width: int) -> dict[str, object]:
        """Return no further options; see ``Backbone.timestep_options``."""
        return {}

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps that a run from a picture skips, rounded up."""
        return num_steps - int(num_steps * strength)

    def fingerprint(self) -> str:
        """Return a text that identifies the prior."""
        return f"{self.prior.templates.double().sum().item()!r} {self.prior.variance!r}"

    def check_attention(self, request: AttentionRequest) -> None:
        """Accept any request: it has no attention, and offers none."""

    def check_inputs(self, inputs: Inputs) -> None:
        """Accept any inputs."""

    def check_wrap(self) -> None:
        """Accept wrapping, since it decodes cell by cell."""

    def remembers(self) -> None:
        """Return None: there is no cache."""

    def words(self, inputs: Inputs) -> tuple[str, ...]:
        """Return (): prompts are ignored."""
        return ()

    def also(self, conditioning: OpaqueConditioning, inputs: Inputs) -> OpaqueConditioning:
        """Return None: prompts are ignored."""
        return conditioning

    def condition(self, inputs: Inputs, request: AttentionRequest | None) -> OpaqueConditioning:
        """Return None: prompts and pictures are ignored."""
        return OpaqueConditioning()

    def predict(self, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: OpaqueConditioning) -> ModelOutput:
        """Return the network output that corresponds to the posterior mean; see ``Backbone.predict``."""
        flow = step.prediction_type == "flow_prediction"
        scale = 1.0 if flow else math.hypot(step.alpha, step.sigma)
        noisy = rows.model_input
        clean = self.prior.posterior_mean(noisy, step.alpha / scale, step.sigma / scale)
        latents = noisy * scale
        return ModelOutput(Prediction(latents, latents * 0, step).with_clean(clean).model_output)

    def read_picture(self, picture: Image | Tensor, height: int, width: int) -> Tensor:
        """Resize a picture that is a tensor already; see ``Backbone.read_picture``."""
        assert isinstance(picture, Tensor)
        return F.interpolate(picture, (height, width), mode="bilinear", align_corners=False)

    def encode(self, picture: Tensor, noise: Tensor | None) -> Tensor:
        """Return the mean of each block of pixels as one latent cell; ``noise`` is ignored."""
        small = F.avg_pool2d(picture, self.vae_scale_factor)
        return F.pad(small, (0, 0, 0, 0, 0, self.latent_channels - 3))

    def check_gradients(self) -> None:
        """Accept differentiation: latents are cells of the picture, and the posterior mean is smooth."""

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """Return the enlargement of the first three channels, not clipped, so that all values have gradients."""
        factor = self.vae_scale_factor
        return lambda clean: clean[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    def callback_tensors(self, conditioning: OpaqueConditioning, step: Step, guided: bool) -> dict[str, None]:
        """Return no tensors besides the latents; see ``Backbone.callback_tensors``."""
        return {}

    def adapters_kept(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: there are no adapters."""
        return nullcontext()

    def release(self) -> None:
        """Do nothing: no resources are held."""

    def decode(
        self,
        latents: Tensor,
        exchange: Exchange | None = None,
        wrap: Wrap = "none",
        backs_off: bool = True,
        streams: Streams | None = None,
        clip: bool = True,
    ) -> Tensor:
        """Return the first three channels, enlarged, and clipped to [0, 1] if asked; see ``Backbone.decode``."""
        factor = self.vae_scale_factor
        picture = latents[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return (picture / 2 + 0.5).clamp(0, 1) if clip else picture / 2 + 0.5

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """Convert pictures in [0, 1] to Pillow images."""
        from PIL.Image import fromarray

        return [fromarray((p.permute(1, 2, 0) * 255).round().byte().cpu().numpy()) for p in pictures]


if TYPE_CHECKING:
    _CONFORMS: type[Backbone] = AnalyticBackbone
