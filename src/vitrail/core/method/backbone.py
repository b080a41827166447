"""The interface of a model; the engine knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol

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

    CallbackValue = Tensor | list[Tensor] | None  # what a callback receives under one name


class OpaqueConditioning:
    """A picture's encoded inputs, which a run passes from ``condition`` to ``predict``.

    Each backbone derives its own class; only the backbone reads its fields.
    """

    __slots__ = ()


@frozen(kw_only=True)
class ForwardCaching:
    """A cache inside a network that carries data from one forward to the next.

    Attributes:
        where: Class and layer that hold the cache, for messages.
        by_name: Whether entries are separated by names, so that each row can have its own.
        remedy: How to switch the cache off.
    """

    where: str
    by_name: bool
    remedy: str


class BackboneSpec(Protocol):
    """A model that was found but not loaded: its properties that are known without its weights."""

    @property
    def offers(self) -> frozenset[str]:
        """Capabilities that strategies may need of it."""

    @property
    def suits(self) -> Mapping[str, object]:
        """Fields of a run, with the values that suit the model."""

    def load(self, device: str | None = None) -> Backbone:
        """Load the weights onto a device."""


class BackboneAdapter(Protocol):
    """What a class registered under ``backbones`` has: ``BackboneSpec``, and what is read and called on the class.

    ``source`` is the field that a spec is made with, ``cls(source=...)``: where its files are.
    """

    pipelines: ClassVar[tuple[str, ...]]  # names of the diffusers pipeline classes that it serves
    offers: ClassVar[frozenset[str]]
    defaults: ClassVar[Mapping[str, object]]  # fields of a run, with the values that suit the family

    @property
    def source(self) -> object:
        """Location of the weights."""

    @property
    def suits(self) -> Mapping[str, object]:
        """Fields of a run, with the values that suit the model."""

    def load(self, device: str | None) -> Backbone:
        """Load the weights onto a device; None for the default."""

    @classmethod
    def adopt(cls, pipe: object) -> Backbone:
        """Return a backbone of a loaded pipeline."""


class Backbone(Protocol):
    """A model: encodes conditioning, predicts rows at a timestep, decodes latents. Loaded from a spec."""

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""

    @property
    def vae_scale_factor(self) -> int:
        """Side of a latent cell in pixels."""

    @property
    def native_size(self) -> int:
        """Side of a training picture in latent cells."""

    @property
    def max_view(self) -> int | None:
        """Longest side of a view that the network takes, in latent cells; None if unlimited."""

    @property
    def offers(self) -> frozenset[str]:
        """Capabilities that strategies may need of it."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Fields of a run, with the values that suit the model."""

    @property
    def device(self) -> torch.device:
        """Device on which the networks run, also while they are offloaded; latents are on it."""

    @property
    def network(self) -> torch.nn.Module | None:
        """The denoising network, for temporary changes inside it; None if there is none to change."""

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """Return a fresh scheduler: the model's own, or another diffusers class with the same noise schedule."""

    def timestep_options(self, scheduler: Scheduler, height: int, width: int) -> Mapping[str, object]:
        """Return the keywords of ``set_timesteps`` besides the number of steps.

        Args:
            scheduler: The scheduler that is to be set.
            height: Height of the latents, cells.
            width: Width of the latents, cells.
        """

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps to skip when a run of ``num_steps`` starts from a picture."""

    def fingerprint(self) -> str:
        """Return a text that identifies the weights; equal on all ranks of a run."""

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse a request for attention maps that the network does not have."""

    def check_inputs(self, inputs: Inputs) -> None:
        """Refuse conditioning that the model cannot use."""

    def check_wrap(self) -> None:
        """Refuse wrapped edges if the decoder cannot draw them seamlessly."""

    def words(self, inputs: Inputs) -> tuple[str, ...]:
        """Return the words of the prompt that the network reads, in their order."""

    def remembers(self) -> ForwardCaching | None:
        """Describe the network's cache of earlier forwards; None if there is none, so that their order is free."""

    def condition(self, inputs: Inputs, request: AttentionRequest | None) -> OpaqueConditioning:
        """Encode the conditioning of a picture; the result is passed to ``predict``."""

    def also(self, conditioning: OpaqueConditioning, inputs: Inputs) -> OpaqueConditioning:
        """Return the conditioning with the prompt of ``inputs`` as one more text that rows may have."""

    def predict(self, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: OpaqueConditioning) -> ModelOutput:
        """Run one forward of the network. The only expensive line of a run.

        Args:
            rows: Views and their CFG branches, with scaled latents, Float32[Tensor, "rows*batch channels h w"].
            step: Position of the run.
            timestep: The timestep as the network expects it, a scalar tensor.
            conditioning: As ``condition`` returned it.

        Returns:
            The model output of each row, of the shape of the input, and the attention maps that ``rows`` asks for.
        """

    def read_picture(self, picture: Image | Tensor, height: int, width: int) -> Tensor:
        """Read a picture of any size and resize it.

        Args:
            picture: As Pillow has it, or a tensor.
            height: Wanted height, pixels.
            width: Wanted width, pixels.

        Returns:
            Float32[Tensor, "1 3 Height Width"] in [-1, 1].
        """

    def encode(self, picture: Tensor, noise: Tensor | None) -> Tensor:
        """Return the latents of a picture in [-1, 1]; ``noise`` samples the posterior, None takes its mean."""

    def decode(
        self,
        latents: Tensor,
        exchange: Exchange,
        wrap: Wrap,
        backs_off: bool,
        streams: Streams,
        clip: bool = True,
    ) -> Tensor:
        """Decode latents to a picture, on every rank; ranks may share the work.

        Args:
            latents: Float32[Tensor, "1 channels height width"].
            exchange: Moves tensors between ranks.
            wrap: Axes whose ends meet.
            backs_off: Whether to retry in smaller pieces when memory ran out.
            streams: Source of the decoder's random numbers, so that equal latents of a run give equal pictures.
            clip: Whether colours are clipped to [0, 1]; a decoder may overshoot. Given only where it is False.

        Returns:
            Float32[Tensor, "1 3 Height Width"] in [0, 1], without ``clip`` about so.
        """

    def check_gradients(self) -> None:
        """Refuse networks that cannot be differentiated; called only if the backbone offers ``gradients``."""

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """Return a differentiable map from clean latents to pictures.

        Returns:
            A function to Float32[Tensor, "batch 3 Height Width"], about in [-1, 1].
        """

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """Convert pictures in [0, 1], Float32[Tensor, "batch 3 Height Width"], to Pillow images."""

    @property
    def pipeline(self) -> object:
        """The object on which a callback looks up what a run does not have; None if there is none."""

    @property
    def callback_inputs(self) -> Sequence[str]:
        """Names of the tensors that a callback may be given, ``latents`` among them."""

    def callback_tensors(
        self, conditioning: OpaqueConditioning, step: Step, guided: bool
    ) -> Mapping[str, CallbackValue]:
        """Return the tensors named in ``callback_inputs``, the latents excepted.

        Args:
            conditioning: As ``condition`` returned it.
            step: Position of the run.
            guided: Whether classifier-free guidance is on; if so, ``uncond`` comes first in each tensor. Tensors of the
                negative prompt are None without it.
        """

    def adapters_kept(self) -> AbstractContextManager[None]:
        """Return a context that restores the scales of adapters on exit, whatever a callback does."""

    def release(self) -> None:
        """End the run: networks may be offloaded again."""
