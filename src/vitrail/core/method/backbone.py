"""What a model answers; the only thing a run knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

    CallbackValue = Tensor | list[Tensor] | None  # what a callback is given under one name


class OpaqueConditioning:
    """What a backbone makes of a picture's inputs, as a run carries it from ``condition`` to ``predict``.

    A backbone derives a class of its own from it; nobody else looks inside.
    """

    __slots__ = ()


@frozen(kw_only=True)
class ForwardCaching:
    """What a network keeps of earlier forwards.

    Attributes:
        where: Who keeps it in which layer, for messages.
        by_name: Whether it is kept apart by names, so that each row can have its own.
        remedy: How to switch it off.
    """

    where: str
    by_name: bool
    remedy: str


class BackboneSpec(Protocol):
    """A model that is found and not loaded: what can be said of it without its weights."""

    @property
    def offers(self) -> frozenset[str]:
        """What strategies may need of it."""

    @property
    def suits(self) -> Mapping[str, object]:
        """Fields of a run that suit it."""

    def load(self, device: str | None = None) -> Backbone:
        """Load its weights."""


class Backbone(Protocol):
    """A model: predicts rows at a timestep, encodes what they are conditioned on, decodes. Loaded from a spec."""

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a latent cell's side."""

    @property
    def native_size(self) -> int:
        """Latent cells of the side that it was trained at."""

    @property
    def max_view(self) -> int | None:
        """Latent cells of the longest side that it takes; None for any."""

    @property
    def offers(self) -> frozenset[str]:
        """What strategies may need of it."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Fields of a run that suit it."""

    @property
    def device(self) -> torch.device:
        """Where its networks run, also when they wait elsewhere; latents are there."""

    @property
    def network(self) -> torch.nn.Module | None:
        """The denoiser, for temporary changes inside it; None if there is none to change."""

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """A fresh scheduler: the model's own, or another diffusers class with the same noise schedule."""

    def timestep_options(self, scheduler: Scheduler, height: int, width: int) -> Mapping[str, object]:
        """What ``set_timesteps`` wants besides the number of steps, for latents of a size in cells."""

    def first_step(self, num_steps: int, strength: float) -> int:
        """How many steps are left out when a run starts from a picture."""

    def fingerprint(self) -> str:
        """Stands for the weights; alike on all ranks of a run."""

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse a request for attention maps that the network does not have."""

    def check_inputs(self, inputs: Inputs) -> None:
        """Refuse conditioning that the model cannot use."""

    def check_wrap(self) -> None:
        """Refuse edges that meet, if the decoder cannot draw them."""

    def words(self, inputs: Inputs) -> tuple[str, ...]:
        """The words of the prompt that the network reads, in their order."""

    def remembers(self) -> ForwardCaching | None:
        """What the network keeps of earlier forwards; None if nothing, so that forwards may come in any order."""

    def condition(self, inputs: Inputs, request: AttentionRequest | None) -> OpaqueConditioning:
        """Encode what a picture is conditioned on; handed back to ``predict``."""

    def also(self, conditioning: OpaqueConditioning, inputs: Inputs) -> OpaqueConditioning:
        """The same with the prompt of ``inputs`` as one more text that rows may have."""

    def predict(self, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: OpaqueConditioning) -> ModelOutput:
        """One forward of the network. The only expensive line of a run."""

    def read_picture(self, picture: Image | Tensor, height: int, width: int) -> Tensor:
        """A picture of any size in [-1, 1] at the wanted size, Float32[Tensor, "1 3 Height Width"]."""

    def encode(self, picture: Tensor, noise: Tensor | None) -> Tensor:
        """Latents of a picture in [-1, 1]; ``noise`` draws from the encoder's posterior, None takes its mean."""

    def decode(self, latents: Tensor, exchange: Exchange, wrap: Wrap, backs_off: bool, streams: Streams) -> Tensor:
        """A picture in [0, 1], Float32[Tensor, "1 3 Height Width"], on every rank; they may share the work.

        What a decoder draws comes from ``streams``, so that the same latents of a run are the same picture every time.
        """

    def check_gradients(self) -> None:
        """Refuse networks that cannot be differentiated; asked only of a backbone that offers ``gradients``."""

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """From clean latents to pictures about in [-1, 1], Float32[Tensor, "batch 3 Height Width"], differentiably."""

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """The same as Pillow images."""

    @property
    def pipeline(self) -> object:
        """Where a callback reads what a run does not have; None if there is no such thing."""

    @property
    def callback_inputs(self) -> Sequence[str]:
        """Names of the tensors that a callback may be given, ``latents`` among them."""

    def callback_tensors(
        self, conditioning: OpaqueConditioning, step: Step, guided: bool
    ) -> Mapping[str, CallbackValue]:
        """The tensors of ``callback_inputs`` besides the latents; both branches in one, or None, if there are two."""

    def adapters_kept(self) -> AbstractContextManager[None]:
        """A context that leaves the scales of adapters as they were, whatever a callback does."""

    def release(self) -> None:
        """The run is over: networks may go back to where they wait."""
