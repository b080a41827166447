"""What a callback in diffusers' form sees, may set and may return: the contract of ``callback_on_step_end``, whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

SETTABLE = ("_guidance_scale", "_guidance_rescale", "_interrupt")
PUBLIC = {"guidance_scale": "_guidance_scale", "guidance_rescale": "_guidance_rescale", "interrupt": "_interrupt"}
DEFAULT_INPUTS = ("latents",)


class Interrupt:
    """``interrupt`` of a run: true once it was asked for, as diffusers' is, and callable, as a sampler's is."""

    def __init__(self, ask: Callable[[], None], asked: Callable[[], bool]):
        self._ask, self._asked = ask, asked

    def __bool__(self) -> bool:
        return self._asked()

    def __call__(self) -> None:
        """Stop at the next step."""
        self._ask()


class CallbackRun:
    """One picture in work, in the words of a diffusers pipeline; the first argument of a callback.

    It may set ``_guidance_scale`` and ``_guidance_rescale``, which count from the next step on, and ``_interrupt``. It
    reads these, ``num_timesteps``, ``do_classifier_free_guidance`` and the other fields of a run; every other name is
    read from the pipeline. Other fields cannot be set, since nothing would come of it.

    Attributes:
        sampler: Whose run it is.
        scheduler: The one that steps, a copy of the pipeline's.
    """

    def __init__(self, sampler: object, pipeline: Any, fields: Mapping[str, Any], check: Callable[[float], None]):
        """Begin a picture.

        Args:
            sampler: Whose run it is.
            pipeline: The caller's own, which answers for names that a run does not have; None if there is none.
            fields: The run's: ``guidance_scale``, ``guidance_rescale``, ``num_timesteps``, ``clip_skip`` and so on.
            check: Refuses a guidance scale that this run cannot change to.
        """
        own = vars(self)
        fields = {**fields, "interrupt": False}
        own.update(sampler=sampler, scheduler=None, _pipeline=pipeline, _fields=fields, _check=check)

    @property
    def interrupt(self) -> Interrupt:
        """Whether the run was asked to stop; call it to ask."""
        return Interrupt(lambda: self._fields.update(interrupt=True), lambda: bool(self._fields["interrupt"]))

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether both branches are predicted."""
        return bool(self._fields["guidance_scale"] > 1)

    def __getattr__(self, name: str) -> Any:
        fields = vars(self)["_fields"]
        if name.removeprefix("_") in fields:
            return fields[name.removeprefix("_")]
        sampler, pipeline = vars(self)["sampler"], vars(self)["_pipeline"]
        for place in (sampler, pipeline):
            if place is not None and hasattr(place, name) and not (place is sampler and name.startswith("_")):
                return getattr(place, name)
        raise AttributeError(f"a run has no {name!r}, and neither has its pipeline")

    def __setattr__(self, name: str, value: Any) -> None:
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


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a callback set {name!r} to {value!r}, which is no number") from error
    if not math.isfinite(number):
        raise ConfigError(f"a callback set {name!r} to {number}, which is not finite")
    return number


def wanted_inputs(callback: Any, asked: Sequence[str] | None, offered: Sequence[str]) -> tuple[str, ...]:
    """The tensors that a callback is given, by name.

    Args:
        callback: One of diffusers' own says what it wants by ``tensor_inputs``.
        asked: ``callback_on_step_end_tensor_inputs`` of the call; None for the latents alone.
        offered: What there is.

    Raises:
        ConfigError: If something is wanted that there is not, or a list is given without a callback.
    """
    if callback is None:
        if asked is not None:
            raise ConfigError("callback_on_step_end_tensor_inputs needs a callback_on_step_end, which gets them")
        return ()
    own = getattr(callback, "tensor_inputs", None)
    wanted = own if own is not None else DEFAULT_INPUTS if asked is None else asked
    unknown = [name for name in wanted if name not in offered]
    if unknown:
        listed = "; ".join(f"{name!r}{nearest(str(name), offered)}" for name in unknown)
        raise ConfigError(f"callback_on_step_end_tensor_inputs: there is no {listed}")
    return tuple(dict.fromkeys(wanted))


def taken(answer: Any, given: Mapping[str, Any], before: Mapping[str, Any], latents: Tensor, unguided: bool) -> Tensor:
    """The latents that a callback leaves, after all that it returned was looked at.

    Args:
        answer: What it returned: a dict, or None for no change.
        given: The tensors that it was given, by name; it may have written into them.
        before: The same as they were, copied.
        latents: Of the canvas, Float32[Tensor, "batch channels height width"].
        unguided: Whether it switched classifier-free guidance off, for which it may return the halves that remain.

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
        halved = unguided and before[name] is not None and _is_kept(value, before[name][-1:])
        if not halved and not _is_kept(value, before[name]):
            raise ConfigError(
                f"callback_on_step_end changed {name!r}, which would be ignored, since views have texts and sizes of "
                "their own: only latents may be replaced. To switch guidance off, set _guidance_scale to 0 and return "
                "the last half of it; for another text, make a call of its own"
            )
    return _checked(new, latents)


def _checked(new: Any, latents: Tensor) -> Tensor:
    """Replaced latents, if they can stand for the canvas's."""
    import torch

    is_tensor = isinstance(new, torch.Tensor)
    if not is_tensor or new.shape != latents.shape or not new.is_floating_point():
        what = f"{new.dtype} {tuple(new.shape)}" if is_tensor else type(new).__name__
        wanted = f"{latents.dtype} {tuple(latents.shape)}"
        raise ConfigError(f"callback_on_step_end returned latents of {what}; they must be of {wanted}")
    checked: Tensor = new.to(latents)
    return checked


def copied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as they are before a callback sees them."""
    return {name: _copied(value) for name, value in given.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return None if value is None else value.clone()


def _is_kept(value: Any, before: Any) -> bool:
    import torch

    if before is None:
        return value is None
    if isinstance(before, list):
        pairs = zip(value, before, strict=False)
        return isinstance(value, list) and len(value) == len(before) and all(_is_kept(a, b) for a, b in pairs)
    return isinstance(value, torch.Tensor) and torch.equal(value, before)
