"""A diffusers pipeline behind the ``Backbone`` protocol; the pipeline is not changed."""

from __future__ import annotations

import copy
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve

from vitrail.backbones.attention.feature_caches import FeatureCaches, find_kept, forget
from vitrail.backbones.compiled_code import CompiledCode, check_compilable
from vitrail.backbones.conditioning.input_checks import check_caller_inputs
from vitrail.backbones.loading.adoption import check_adopted, check_parts, missing_encoders
from vitrail.backbones.loading.fingerprint import fingerprint_of
from vitrail.backbones.loading.turns import adapter_scales_kept, attributes_kept, lasting, moves, scales_kept
from vitrail.core.config.ambient import plain_defaults
from vitrail.core.method.inputs import Extras
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import CapabilityError, ConfigError, nearest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.backbones.conditioning.encoded import Conditioning
    from vitrail.backbones.model_family import ModelFamily
    from vitrail.backbones.vae.strip_ops import StripExchange
    from vitrail.core.config.run_config import Wrap
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import Backbone, CallbackValue, ForwardCaching, OpaqueConditioning
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

_PICTURES = itertools.count()
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")


class PipelineBackbone:
    """A loaded pipeline and its family.

    Attributes:
        offers: Capabilities that strategies may need.
        defaults: Fields of a run, with the values that suit the model.
        latent_channels: Number of latent channels of the VAE.
        vae_scale_factor: Side of a latent cell in pixels.
        native_size: Side of a training picture in latent cells.
        max_view: Longest side of a view that the network takes, in latent cells; None if unlimited.
    """

    def __init__(self, pipe: Any, family: ModelFamily, offers: frozenset[str], defaults: Mapping[str, object]):
        check_adopted(pipe, family)
        self._pipe, self._family = pipe, family
        self._lock = threading.Lock()  # ranks that are threads may share a backbone; tokenizers and weights change
        self._users: set[int] = set()  # threads that use it
        self._compiled = CompiledCode()
        self.offers, self.defaults = offers, defaults
        self.latent_channels: int = self._pipe.vae.config.latent_channels
        self.vae_scale_factor: int = self._pipe.vae_scale_factor
        network: Any = self.network
        size: int | tuple[int, int] = network.config.sample_size
        self.native_size: int = size if isinstance(size, int) else min(size)
        self.max_view = family.max_view(pipe)

    @property
    def network(self) -> torch.nn.Module:
        """The denoising network, as the pipeline has it now."""
        return self._family.network(self._pipe)

    @property
    def device(self) -> torch.device:
        """Device on which the networks run, also while they are offloaded."""
        return cast("torch.device", self._pipe._execution_device)

    @plain_defaults()
    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """Return a copy of the pipeline's scheduler, or another class with the same noise schedule.

        Raises:
            ConfigError: If there is no scheduler of that name, or it cannot be made with this noise schedule.
            CapabilityError: If it reads another prediction type than the model's.
        """
        import diffusers

        current = self._pipe.scheduler
        if name is None:
            return cast("Scheduler", copy.deepcopy(current))
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        if name not in known:
            raise ConfigError(f"no scheduler named {name!r}{nearest(name, known)}")
        cls = getattr(diffusers, name)
        options = {}
        if "clip_sample" in inspect.signature(cls.__init__).parameters and "clip_sample" not in current.config:
            options["clip_sample"] = False  # the default clips pixels, which would ruin latents
        try:
            scheduler = cls.from_config(current.config, **options)
        except ImportError as error:
            raise ConfigError(f"scheduler {name!r} needs a package that is not installed: {error}") from error
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ConfigError(f"scheduler {name!r} cannot be made with this model's noise schedule: {error}") from error
        _refuse_other_prediction(current, scheduler, name)
        return cast("Scheduler", scheduler)

    @plain_defaults()
    def timestep_options(self, scheduler: Scheduler, height: int, width: int) -> Mapping[str, object]:
        """Return the keywords of ``set_timesteps`` besides the number of steps; see ``Backbone``."""
        return self._family.timestep_options(self._pipe, scheduler, height, width)

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps to skip when a run starts from a picture, as the family's img2img does."""
        return self._family.first_step(num_steps, strength)

    def fingerprint(self) -> str:
        """Return a digest of the pipeline as it is now: weights, adapters, settings."""
        self._users.add(threading.get_ident())  # the first call of a rank
        return fingerprint_of(self._pipe.components)

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse layers that the network does not have, and words if there is no tokenizer.

        Raises:
            CapabilityError: If the maps are not available.
        """
        if self._pipe.tokenizer is None:
            raise CapabilityError(
                f"{type(self._pipe).__name__} has no tokenizer, and the method looks at the attention to words; load "
                "it, or use a method without a mask, such as 'multidiffusion'"
            )
        self._family.check_attention(self._pipe, request)

    def check_inputs(self, inputs: Inputs) -> None:
        """Refuse conditioning that this pipeline, as it is now, cannot use."""
        from vitrail.backbones.loading.adoption import check_dropout

        check_parts(self._pipe, self._family)
        check_dropout(self._pipe.components)
        lacking = missing_encoders(self._pipe, self._family)
        check_caller_inputs(self._pipe, inputs, self._family.serves(self._pipe), lacking)
        if inputs.compiled:
            check_compilable(self.network, self.device, inputs)

    def check_wrap(self) -> None:
        """Refuse wrapped edges if the VAE cannot draw them seamlessly."""
        from vitrail.backbones.vae.decoding import check_wrap

        check_wrap(self._pipe.vae)

    @plain_defaults()
    def condition(self, inputs: Inputs, request: AttentionRequest | None) -> Conditioning:
        """Encode the conditioning of a picture."""
        encoders = [getattr(self._pipe, name, None) for name in ENCODERS]
        with self._lock, attributes_kept(self._pipe), scales_kept(*encoders), lasting(*encoders):
            self._users.add(threading.get_ident())
            made = self._family.condition(self._pipe, inputs, self.device, request)
        scaled = inputs.extras.lora_scale not in (None, 1.0)
        compiled = self._compiled if inputs.compiled else None
        return evolve(made, in_turn=scaled or moves(*self._denoising()), kept=self._kept(), compiled=compiled)

    @plain_defaults()
    def words(self, inputs: Inputs) -> tuple[str, ...]:
        """Return the words of the prompt that the network reads, in their order."""
        from vitrail.backbones.conditioning.words import words_of

        with self._lock:
            return tuple(word.text for word in words_of(self._pipe, inputs.prompt))

    def also(self, conditioning: OpaqueConditioning, inputs: Inputs) -> Conditioning:
        """Return the conditioning with one more text that rows may have."""
        own = _own(conditioning)
        request = None if own.request is None else evolve(own.request, skip_missing=True)
        return own.also(self.condition(evolve(inputs, extras=_text_only(inputs.extras)), request))

    @plain_defaults()
    def predict(self, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: OpaqueConditioning) -> ModelOutput:
        """Run one forward of the network, and compute the requested attention maps beside it; see ``Backbone``."""
        own = _own(conditioning)
        with self._turn(own), self._hooked(own, rows):
            if own.kept is None:
                return self._family.forward(self._pipe, rows, step, timestep, own)
            ask = partial(self._family.forward, self._pipe, step=step, timestep=timestep, conditioning=own)
            return own.kept.forward(rows, step, ask)

    @plain_defaults()
    def encode(self, picture: Tensor, noise: Tensor | None) -> Tensor:
        """Return the latents of a picture in [-1, 1], Float32[Tensor, "1 3 Height Width"]; see ``Backbone``."""
        from vitrail.backbones.vae.decoding import encode

        with lasting(self._pipe.vae):
            return encode(self._pipe.vae, picture, noise, self._family.upcasts)

    @plain_defaults()
    def decode(
        self,
        latents: Tensor,
        exchange: StripExchange | None = None,
        wrap: Wrap = "none",
        backs_off: bool = True,
        streams: Streams | None = None,
        clip: bool = True,
    ) -> Tensor:
        """Return a picture in [0, 1], Float32[Tensor, "1 3 Height Width"]; ranks share a large one by strips.

        Args:
            latents: Float32[Tensor, "1 channels height width"].
            exchange: The ranks; a single one if None.
            wrap: Axes whose ends meet.
            backs_off: Whether to retry in smaller strips when memory ran out.
            streams: Source of the decoder's random numbers; a fixed seed if None.
            clip: Whether colours are clipped to [0, 1].
        """
        from vitrail.backbones.vae.decoding import decode
        from vitrail.backbones.vae.strip_ops import Alone
        from vitrail.backbones.vae.strips import UNSEEDED

        vae, upcasts = self._pipe.vae, self._family.upcasts
        with lasting(vae):
            team, source = exchange or Alone(), streams or UNSEEDED
            return decode(vae, latents, self.native_size, team, wrap, backs_off, upcasts, source, clip)

    @plain_defaults()
    def check_gradients(self) -> None:
        """Refuse networks, as they are now, that cannot be differentiated."""
        from vitrail.backbones.vae.differentiable import check_differentiable

        check_differentiable(self._pipe.vae, *self._denoising())

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """Return a differentiable map from clean latents to pictures; see ``Backbone.decoder``."""
        from vitrail.backbones.vae.differentiable import decoder_of

        return decoder_of(self._pipe.vae, self.device)

    @plain_defaults()
    def read_picture(self, picture: Image | Tensor, height: int, width: int) -> Tensor:
        """Read and resize a picture by the pipeline's image processor; see ``Backbone.read_picture``."""
        return read_picture(self._pipe.image_processor, picture, height, width).to(self.device)

    @plain_defaults()
    def to_pil(self, pictures: Tensor) -> list[Image]:
        """Convert pictures in [0, 1] to Pillow images, by the pipeline's image processor."""
        processor = self._pipe.image_processor
        return cast("list[Image]", processor.numpy_to_pil(processor.pt_to_numpy(pictures)))

    @property
    def pipeline(self) -> object:
        """The user's pipeline, for callbacks, which may change it."""
        return self._pipe

    @property
    def callback_inputs(self) -> tuple[str, ...]:
        """Names of the tensors that a callback may receive: the pipeline's own, as far as a run has them."""
        made = self._family.callback_inputs
        return tuple(name for name in getattr(self._pipe, "_callback_tensor_inputs", ("latents",)) if name in made)

    def callback_tensors(
        self, conditioning: OpaqueConditioning, step: Step, guided: bool
    ) -> Mapping[str, CallbackValue]:
        """Return the callback's tensors except the latents, as diffusers' loop has them; see ``ModelFamily``."""
        return self._family.callback_tensors(self._pipe, _own(conditioning), step, guided)

    @contextmanager
    def adapters_kept(self) -> Iterator[None]:
        """Restore the scales of IP-Adapters on exit, which a callback may change for the rest of a picture."""
        with adapter_scales_kept(self.network):
            yield

    def release(self) -> None:
        """Offload networks as the pipeline does between calls, when the last thread is done."""
        with self._lock:
            self._users.discard(threading.get_ident())
            if not self._users:
                forget(*self._denoising())
                self._pipe.maybe_free_model_hooks()

    def remembers(self) -> ForwardCaching | None:
        """Describe the networks' cache of earlier forwards, as they are now; None if there is none."""
        return find_kept(*self._denoising())

    def _kept(self) -> FeatureCaches | None:
        """Return the separated caches of a new picture; None if the networks have no cache."""
        found = self.remembers()
        if found is None:
            return None
        return FeatureCaches(self._denoising(), found.by_name, next(_PICTURES), lambda: len(self._users) <= 1)

    def _denoising(self) -> tuple[torch.nn.Module | None, ...]:
        return self.network, getattr(self._pipe, "controlnet", None)

    def _hooked(self, conditioning: Conditioning, rows: MicroBatch) -> AbstractContextManager[object]:
        """Keep code from being made of the network while hooks on it capture attention."""
        captures = rows.capture and conditioning.compiled is not None
        return self._compiled.without_making() if captures else nullcontext()

    @contextmanager
    def _turn(self, conditioning: Conditioning) -> Iterator[None]:
        """Serialise forwards of several threads, if a forward changes the networks."""
        if not conditioning.in_turn:
            yield
            return
        with self._lock, scales_kept(*self._denoising()), lasting(*self._denoising()):
            yield


def read_picture(processor: Any, picture: object, height: int, width: int) -> Tensor:
    """Resize a picture to exactly the wanted size by a pipeline's processor, which would round it to whole cells.

    Args:
        processor: diffusers' ``VaeImageProcessor``.
        picture: A Pillow image, numpy array or tensor.
        height: Wanted height, pixels.
        width: Wanted width, pixels.

    Returns:
        Float32[Tensor, "1 channels height width"], in the processor's range.
    """
    exact = type(processor).from_config(processor.config, vae_scale_factor=1)
    read: Tensor = exact.preprocess(picture, height=height, width=width)
    return read


def _text_only(extras: Extras) -> Extras:
    """Return only the extras that affect how a text is encoded."""
    return Extras(
        clip_skip=extras.clip_skip,
        cross_attention_kwargs=extras.cross_attention_kwargs,
        joint_attention_kwargs=extras.joint_attention_kwargs,
    )


def quiet_libraries() -> None:
    """Disable the progress bars and advice of diffusers and transformers, which would cover ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _own(conditioning: OpaqueConditioning) -> Conditioning:
    from vitrail.backbones.conditioning.encoded import Conditioning

    return Conditioning.of(conditioning)


def _refuse_other_prediction(current: Scheduler, other: Scheduler, name: str) -> None:
    from vitrail.core.schedule.noise_schedule import prediction_type_of

    have, want = prediction_type_of(current), prediction_type_of(other)
    if have != want:
        raise CapabilityError(f"the model predicts {have!r}, but {name} reads {want!r}; choose another scheduler")


if TYPE_CHECKING:
    _CONFORMS: type[Backbone] = PipelineBackbone
