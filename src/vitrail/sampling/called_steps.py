"""The steps of one picture as a caller's ``callback_on_step_end`` follows them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import define

from vitrail.core.engine.rank_comparison import agree
from vitrail.core.method.members import combines_branches
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.sampling.callbacks import SETTABLE, CallbackRun, copied, taken
from vitrail.sampling.input_digests import content_digest
from vitrail.sampling.previews import preview

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.engine.conditioning_cache import Conditions
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.sampling.builder import Builder
    from vitrail.sampling.call_options import Call


@define(eq=False)
class CalledSteps:
    """What the callback is given after each step of a picture, and what it changes.

    Attributes:
        call: Arguments of the call, with the callback; without one nothing is done.
        builder: Builder of the picture.
        plan: What the run does.
        wanted: Names of the tensors that the callback receives.
        communicator: This rank's communicator for the picture.
        given: Digests of inputs, in which a callback that changed the run is entered.
        caller: The callback's first argument.
        conditions: Source of its tensors.
    """

    call: Call
    builder: Builder
    plan: RunPlan
    wanted: tuple[str, ...]
    communicator: Communicator
    given: dict[str, str]
    caller: CallbackRun
    conditions: Conditions

    @classmethod
    def begin(
        cls,
        sampler: object,
        call: Call,
        builder: Builder,
        plan: RunPlan,
        wanted: tuple[str, ...],
        communicator: Communicator,
        given: dict[str, str],
    ) -> CalledSteps:
        """Begin a picture; for the arguments see the attributes, ``sampler`` is the one that was called."""
        config, extras = builder.config, call.extras
        fields = {
            "guidance_scale": config.guidance_scale,
            "guidance_rescale": config.guidance_rescale,
            "num_timesteps": len(plan.steps()) - plan.first,
            "clip_skip": extras.clip_skip,
            "cross_attention_kwargs": extras.cross_attention_kwargs,
            "joint_attention_kwargs": extras.joint_attention_kwargs,
        }
        caller = CallbackRun(sampler, builder.backbone.pipeline, fields, partial(_check_guidance, call, builder))
        return cls(call, builder, plan, wanted, communicator, given, caller, builder.conditions(extras, plan.phases))

    def guidance(self) -> tuple[float, float]:
        """Return guidance scale and rescale, which the callback may have set."""
        return self.caller.guidance_scale, self.caller.guidance_rescale

    def after(self, step: Step, new: Tensor, prediction: Prediction) -> Tensor:
        """Call the callback after a step; return the latents that it leaves.

        Args:
            step: The step that is done.
            new: The latents after it, Float32[Tensor, "batch channels height width"].
            prediction: The canvas's prediction, for a preview.
        """
        callback, caller = self.call.callback, self.caller
        if callback is None:
            return new
        stepper, guided = self.plan.phase(step).stepper, caller.do_classifier_free_guidance
        vars(caller)["scheduler"] = stepper.scheduler
        given: dict[str, CallbackValue] = {"latents": new} if "latents" in self.wanted else {}
        if self.wanted != tuple(given):
            made = self.builder.backbone.callback_tensors(self.conditions.at(step), step, guided)
            given = {name: new if name == "latents" else made[name] for name in self.wanted}
        before, kept, scale = copied(given), new.clone(), caller.guidance_scale
        with caller.showing(partial(self._preview, prediction, self.plan.phase(step).canvas)):
            answer = callback(caller, step.index - self.plan.first, stepper.timestep(step), dict(given))
        latents = taken(answer, given, before, new, guided and not caller.do_classifier_free_guidance)
        if caller.guidance_scale != scale or not bool((latents == kept).all()):
            self.given["callback_on_step_end"] = "changed the run"
        self._check_alike(latents)
        return latents

    def _preview(self, prediction: Prediction, canvas: Canvas) -> Image:
        """Return a small picture of a prediction of the canvas, decoded by this rank alone."""
        config, backbone = self.builder.config, self.builder.backbone
        with self.communicator.trace.span("compute", "preview"):
            return preview(prediction, canvas, backbone, config.memory == "auto", Streams(config.seed))

    def _check_alike(self, latents: Tensor) -> None:
        """Refuse callbacks that differ between ranks; one exchange per step."""
        if self.communicator.world_size == 1:
            return
        facts = {name: repr(getattr(self.caller, name)) for name in SETTABLE}
        changes = {f"what callbacks set as {name}": value for name, value in facts.items()}
        agree(self.communicator, {"the latents that callbacks left": content_digest(latents)} | changes)


def _check_guidance(call: Call, builder: Builder, scale: float) -> None:
    """Refuse a guidance scale, set by a callback, that this run cannot change to."""
    if call.spread.checkpoint is not None:
        raise ConfigError("a callback set _guidance_scale, which a checkpoint does not keep; leave one of them out")
    if scale > 1 and builder.config.guidance_scale <= 1:
        raise ConfigError(
            f"a callback set _guidance_scale to {scale:g}, but the run began without guidance, so nothing is "
            "encoded to guide away from; begin with a guidance_scale above 1"
        )
    names = [type(g).__name__ for s in builder.composition.stages for g in s.guidance if combines_branches(g)]
    if scale <= 1 and names:
        raise ConfigError(
            f"a callback set _guidance_scale to {scale:g}, which switches classifier-free guidance off, and "
            f"{names[0]} of the method combines its branches; keep it above 1"
        )
