"""The architecture-specific part of pipelines, and the components that a run needs of a pipeline."""

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

ENCODER, TOKENIZER = ("PreTrainedModel",), ("PreTrainedTokenizerBase",)  # base classes of transformers
TEXT = ("prompt_embeds", "negative_prompt_embeds", "clip_skip")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@frozen
class PipelinePart:
    """A component of a pipeline that a run needs.

    Attributes:
        name: Name of the component in the pipeline.
        classes: Allowed classes of diffusers or transformers, subclasses included; () for any.
        remedy: What to do if it is missing; "" if a run does not need it.
        encodes: Whether it is needed only to encode text, so that a run with embeddings does not need it.
    """

    name: str
    classes: tuple[str, ...] = field(converter=as_tuple, default=())
    remedy: str = ""
    encodes: bool = False


class ModelFamily(Protocol):
    """The architecture-specific part of pipelines."""

    @property
    def parts(self) -> Sequence[PipelinePart]:
        """Components that a run needs, with their allowed classes."""

    @property
    def upcasts(self) -> bool:
        """Whether a float16 VAE with ``force_upcast`` runs in float32."""

    def network(self, pipe: Any) -> nn.Module:
        """Return the denoising network."""

    def check(self, pipe: Any) -> None:
        """Refuse a pipeline that only looks like one of the family."""

    def serves(self, pipe: Any) -> frozenset[str]:
        """Return the names of the ``Extras`` that this pipeline can use."""

    def check_attention(self, pipe: Any, request: AttentionRequest) -> None:
        """Refuse a request for attention maps that the network does not have."""

    def max_view(self, pipe: Any) -> int | None:
        """Return the longest side of a view that the network takes, in latent cells; None if unlimited."""

    def timestep_options(self, pipe: Any, scheduler: Scheduler, height: int, width: int) -> Mapping[str, object]:
        """Return the keywords of ``set_timesteps`` besides the number of steps.

        Args:
            pipe: The pipeline.
            scheduler: The scheduler that is to be set.
            height: Height of the latents, cells.
            width: Width of the latents, cells.
        """

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps to skip when a run of ``num_steps`` starts from a picture."""

    def condition(
        self, pipe: Any, inputs: Inputs, device: torch.device, request: AttentionRequest | None
    ) -> Conditioning:
        """Encode the conditioning of a picture.

        Args:
            pipe: The pipeline.
            inputs: What to encode.
            device: Device of the embeddings.
            request: Attention maps to capture, if any.
        """

    def forward(
        self, pipe: Any, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: Conditioning
    ) -> ModelOutput:
        """Run one forward of the network.

        Args:
            pipe: The pipeline.
            rows: Views and their CFG branches, Float32[Tensor, "rows*batch channels h w"].
            step: Position of the run.
            timestep: The timestep as the network expects it.
            conditioning: As ``condition`` returned it.
        """

    @property
    def callback_inputs(self) -> Sequence[str]:
        """Names of the tensors that a callback may receive."""

    def callback_tensors(
        self, pipe: Any, conditioning: Conditioning, step: Step, guided: bool
    ) -> Mapping[str, CallbackValue]:
        """Return these tensors except the latents, as diffusers' loop has them at a step.

        Args:
            pipe: The pipeline.
            conditioning: As ``condition`` returned it.
            step: Position of the run.
            guided: Whether classifier-free guidance is on; if so, ``uncond`` comes first.
        """
