"""Callbacks in diffusers' form: what ``callback_on_step_end`` receives, may set and may return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitrail.errors import ConfigError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.method.backbone import CallbackValue

SETTABLE = ("_guidance_scale", "_guidance_rescale", "_interrupt")
PUBLIC = {"guidance_scale": "_guidance_scale", "guidance_rescale": "_guidance_rescale", "interrupt": "_interrupt"}
DEFAULT_INPUTS = ("latents",)


class Interrupt:
    """``interrupt`` of a run: true once requested, as in diffusers, and callable, as in ``Sampler``."""

    def __init__(self, ask: Callable[[], None], asked: Callable[[], bool]):
        self._ask, self._asked = ask, asked

    def __bool__(self) -> bool:
        return self._asked()

    def __call__(self) -> None:
        """Request to stop before the next step."""
        self._ask()


class CallbackRun:
    """The current picture with the attributes of a diffusers pipeline; the first argument of a callback.

    A callback may set ``_guidance_scale`` and ``_guidance_rescale``, which apply from the next step on, and
    ``_interrupt``. It can read these, ``num_timesteps``, ``do_classifier_free_guidance`` and the other fields of a
    run; all other names are read from the pipeline. Other fields cannot be set, since that would have no effect.

    Attributes:
        sampler: The sampler of the run.
        scheduler: The scheduler that steps, a copy of the pipeline's.
    """

    _fields: dict[str, object]
    guidance_scale: float
    guidance_rescale: float

    def __init__(self, sampler: object, pipeline: object, fields: Mapping[str, object], check: Callable[[float], None]):
        """Begin a picture.

        Args:
            sampler: The sampler of the run.
            pipeline: The caller's pipeline, for names that a run does not have; None if there is none.
            fields: The run's ``guidance_scale``, ``guidance_rescale``, ``num_timesteps``, ``clip_skip`` and so on.
            check: Raise for a guidance scale that this run cannot change to.
        """
        own = vars(self)
        fields = {**fields, "interrupt": False}
        own.update(sampler=sampler, scheduler=None, _pipeline=pipeline, _fields=fields, _check=check, _show=None)

    @property
    def interrupt(self) -> Interrupt:
        """Whether the run was asked to stop; call it to request that."""
        return Interrupt(lambda: self._fields.update(interrupt=True), lambda: bool(self._fields["interrupt"]))

    def preview(self) -> Image:
        """Return a small picture of what the network predicts at this step; computed here, and only if called.

        It is the predicted clean canvas, reduced by the mean of its latent cells to at most as many as a training
        picture has, and decoded: about the cost and memory of one decoding at the training size, whatever the size of
        the canvas. The run and its random numbers are not touched. With several ranks each may ask or not: the caller
        decodes alone. It is no part of the report's counts.

        Raises:
            ConfigError: After the callback has returned.
            PredictionError: If the decoder returns values that are not finite.
        """
        show: Callable[[], Image] | None = vars(self)["_show"]
        if show is None:
            raise ConfigError("run.preview() was called after its callback; call it inside, and keep the picture")
        return show()

    @contextmanager
    def showing(self, show: Callable[[], Image]) -> Iterator[None]:
        """Let ``preview`` return what ``show`` does, during the block."""
        vars(self)["_show"] = show
        try:
            yield
        finally:
            vars(self)["_show"] = None

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether both branches are predicted."""
        return self.guidance_scale > 1

    def __getattr__(self, name: str) -> object:
        fields: dict[str, object] = vars(self)["_fields"]
        if name.removeprefix("_") in fields:
            return fields[name.removeprefix("_")]
        sampler, pipeline = vars(self)["sampler"], vars(self)["_pipeline"]
        for place in (sampler, pipeline):
            if place is not None and hasattr(place, name) and not (place is sampler and name.startswith("_")):
                return getattr(place, name)
        raise AttributeError(f"a run has no {name!r}, and neither has its pipeline")

    def __setattr__(self, name: str, value: object) -> None:
        fields = vars(self)["_fields"]
        if name not in SETTABLE:
            if name in PUBLIC:
                raise ConfigError(f"a callback set {name!r}; set {PUBLIC[name]!r}, as for a diffusers pipeline")
            raise ConfigError(
                f"a callback set {name!r}, and nothing would come of it{nearest(name, SETTABLE)}; keep state of your "
                "own in the callback"
            )
        if name == "_interrupt":
            fields["interrupt"] = bool(value)
            return
        number = _number(name, value)
        if name == "_guidance_scale":
            vars(self)["_check"](number)
        elif not 0 <= number <= 1:
            raise ConfigError(f"a callback set {name!r} to {number:g}; it is a share, from 0 to 1")
        fields[name.removeprefix("_")] = number


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # anything may be set, and what is no number is refused
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a callback set {name!r} to {value!r}, which is no number") from error
    if not math.isfinite(number):
        raise ConfigError(f"a callback set {name!r} to {number}, which is not finite")
    return number


def wanted_inputs(callback: object, asked: Sequence[str] | None, offered: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the tensors that a callback receives.

    Args:
        callback: A callback, or None; one of diffusers' classes declares ``tensor_inputs``.
        asked: ``callback_on_step_end_tensor_inputs`` of the call; None for the latents alone.
        offered: Available names.

    Raises:
        ConfigError: If a name is not available, a list is given without a callback, or differs from what the callback
            declares.
    """
    if callback is None:
        if asked is not None:
            raise ConfigError("callback_on_step_end_tensor_inputs needs a callback_on_step_end, which gets them")
        return ()
    own = getattr(callback, "tensor_inputs", None)
    if own is not None and asked is not None and set(own) != set(asked):
        raise ConfigError(
            f"callback_on_step_end_tensor_inputs: {type(callback).__name__} declares itself what it receives, "
            f"tensor_inputs = {list(own)}, so the list of the call, {list(asked)}, would be ignored; leave it out"
        )
    wanted = own if own is not None else DEFAULT_INPUTS if asked is None else asked
    unknown = [name for name in wanted if name not in offered]
    if unknown:
        listed = "; ".join(f"{name!r}{nearest(str(name), offered)}" for name in unknown)
        raise ConfigError(f"callback_on_step_end_tensor_inputs: there is no {listed}")
    return tuple(dict.fromkeys(wanted))


def taken(
    answer: object,
    given: Mapping[str, CallbackValue],
    before: Mapping[str, CallbackValue],
    latents: Tensor,
    unguided: bool,
) -> Tensor:
    """Return the latents after a callback, and refuse other changes.

    Args:
        answer: What the callback returned: a dict, or None for no change.
        given: The tensors that it received, by name; it may have written into them.
        before: Copies of them from before the call.
        latents: The canvas, Float32[Tensor, "batch channels height width"].
        unguided: Whether it switched classifier-free guidance off, so that it may return the remaining halves.

    Raises:
        ConfigError: If it returned or wrote something that the run would ignore.
    """
    if answer is not None and not isinstance(answer, Mapping):
        raise ConfigError(f"callback_on_step_end must return a dict of tensors or None, got {type(answer).__name__}")
    left = {**given, **(answer or {})}
    new = left.pop("latents", latents)
    for name, value in left.items():
        if name not in given:
            raise ConfigError(
                f"callback_on_step_end returned {name!r}, which would be ignored: it was given {', '.join(given)}, and "
                "only latents may be replaced"
            )
        own = before[name]
        halved = unguided and own is not None and _is_kept(value, own[-1:])
        if not halved and not _is_kept(value, own):
            raise ConfigError(
                f"callback_on_step_end changed {name!r}, which would be ignored, since views have texts and sizes of "
                "their own: only latents may be replaced. To switch guidance off, set _guidance_scale to 0 and return "
                "the last half of it; for another text, make a call of its own"
            )
    return _checked(new, latents)


def _checked(new: object, latents: Tensor) -> Tensor:
    """Return replaced latents with the canvas's dtype and device; refuse another shape."""
    import torch

    if not isinstance(new, torch.Tensor) or new.shape != latents.shape or not new.is_floating_point():
        what = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, torch.Tensor) else type(new).__name__
        wanted = f"{latents.dtype} {tuple(latents.shape)}"
        raise ConfigError(f"callback_on_step_end returned latents of {what}; they must be of {wanted}")
    return new.to(latents)


def copied(given: Mapping[str, CallbackValue]) -> dict[str, CallbackValue]:
    """Copy tensors before a callback sees them."""
    return {name: _copied(value) for name, value in given.items()}


def _copied(value: CallbackValue) -> CallbackValue:
    if isinstance(value, list):
        return [each.clone() for each in value]
    return None if value is None else value.clone()


def _is_kept(value: object, before: CallbackValue) -> bool:
    import torch

    if before is None:
        return value is None
    if isinstance(before, list):
        if not isinstance(value, list) or len(value) != len(before):
            return False
        return all(_is_kept(own, other) for own, other in zip(value, before, strict=True))
    return isinstance(value, torch.Tensor) and torch.equal(value, before)
