"""What pipelines of one architecture have of their own, and the parts that a run needs of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vitrail.backbones.conditioning.encoded import Conditioning
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step

TEXT = ("prompt_embeds", "negative_prompt_embeds", "clip_skip")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@frozen
class PipelinePart:
    """A component of a pipeline that a run needs.

    Attributes:
        name: As the pipeline calls it.
        classes: Of diffusers or transformers, one of which it is, or a subclass; () for any.
        remedy: What to do if it is not there; "" if a run may do without.
        encodes: Whether it is needed to encode a text, so that a run with embeddings does without.
    """

    name: str
    classes: tuple[str, ...] = field(converter=as_tuple, default=())
    remedy: str = ""
    encodes: bool = False


class ModelFamily(Protocol):
    """What pipelines of one architecture have of their own."""

    @property
    def parts(self) -> Sequence[PipelinePart]:
        """The components that a run needs, and of which classes they may be."""

    @property
    def upcasts(self) -> bool:
        """Whether a VAE in float16 that says ``force_upcast`` runs in float32."""

    def network(self, pipe: Any) -> nn.Module:
        """The denoiser."""

    def check(self, pipe: Any) -> None:
        """Refuse a pipeline that only looks like one of the family."""

    def serves(self, pipe: Any) -> frozenset[str]:
        """The ``Extras`` that this pipeline can use."""

    def check_attention(self, pipe: Any, request: AttentionRequest) -> None:
        """Refuse a request for maps that the network does not have."""

    def max_view(self, pipe: Any) -> int | None:
        """Latent cells of the longest side that the network takes; None for any."""

    def timestep_options(self, pipe: Any, scheduler: Scheduler, height: int, width: int) -> Mapping[str, object]:
        """What ``set_timesteps`` wants besides the number of steps, for latents of a size."""

    def first_step(self, num_steps: int, strength: float) -> int:
        """How many steps are left out when a run starts from a picture."""

    def condition(
        self, pipe: Any, inputs: Inputs, device: torch.device, request: AttentionRequest | None
    ) -> Conditioning:
        """Encode what a picture is conditioned on."""

    def forward(
        self, pipe: Any, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: Conditioning
    ) -> ModelOutput:
        """One forward of the network."""

    @property
    def callback_inputs(self) -> Sequence[str]:
        """Names of the tensors that a callback may be given."""

    def callback_tensors(
        self, pipe: Any, conditioning: Conditioning, step: Step, guided: bool
    ) -> Mapping[str, CallbackValue]:
        """These tensors besides the latents, as diffusers' loop has them at a step."""
