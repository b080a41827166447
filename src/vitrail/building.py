"""From a run and a model to the loop that makes one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from vitrail.backbones.rectification.surround import rectified
from vitrail.core.composition import Composition
from vitrail.core.fields import as_tuple
from vitrail.core.inputs import Extras, Inputs
from vitrail.core.run_config import ROW_BATCH, RunConfig
from vitrail.core.turning import predict_turned
from vitrail.core.views import Canvas
from vitrail.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from vitrail.core.engine import Engine
    from vitrail.core.exchange import Exchange
    from vitrail.core.noise_schedule import Stepper
    from vitrail.core.step import Step


@frozen(eq=False)
class Builder:
    """Puts an engine together.

    Attributes:
        backbone: The model.
        composition: The method.
        plugins: (name, plugin) pairs that wrap or observe the stages.
        config: The run.
    """

    backbone: Any
    composition: Composition
    plugins: tuple[tuple[str, object], ...] = field(converter=as_tuple)
    config: RunConfig

    def engine(self, seed: int, extras: Extras, exchange: Exchange, watched: bool) -> Engine:
        """The loop of one picture, ready to run; see ``Sampler.engine``."""
        from vitrail.core.engine import Engine
        from vitrail.core.forwarding import Forwarding
        from vitrail.core.noise_schedule import Stepper
        from vitrail.core.stages import Answers, Stages
        from vitrail.core.streams import Streams

        config, backbone, streams = self.config, self.backbone, Streams(seed)
        factor = backbone.vae_scale_factor
        canvas = Canvas.of_picture(config.height, config.width, factor, backbone.native_size, config.wrap)
        scheduler = backbone.new_scheduler(config.scheduler)
        timestep_options = backbone.timestep_options(scheduler, canvas.height, canvas.width)
        stepper = Stepper(scheduler, config.num_inference_steps, timestep_options)
        first = self._first_step(extras, stepper)
        inputs = self._inputs(extras, len(stepper.schedule.timesteps), first)
        backbone.check_inputs(inputs)
        if config.wrap != "none":
            backbone.check_wrap()
        request = self.composition.attention_request()
        conditioning: list[Any] = []

        def predict(step: Step, rows: Any) -> Any:
            if not conditioning:  # text is encoded at the first model call, so that a plan costs none
                conditioning.append(backbone.condition(inputs, request))
            with rectified(self.composition.stages[step.stage].rectification, backbone, step, rows):
                return predict_turned(
                    rows, lambda shown: backbone.predict(shown, step, stepper.timesteps[step.index], conditioning[0])
                )

        answers = Answers(self.composition, predict, backbone.latent_channels, streams)
        engine = Engine(
            composition=self.composition,
            stages=Stages(answers, self.plugins),
            stepper=stepper,
            canvas=self.composition.pad(canvas, len(stepper.schedule.timesteps)),
            streams=streams,
            branches=("uncond", "cond") if inputs.guided else ("cond",),
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            row_batch=config.row_batch or ROW_BATCH,
            first=first,
            forwarding=Forwarding(backs_off=config.memory == "auto"),
            cell=factor,
            exchange=exchange,
            watched=watched,
        )
        self._refuse_large_views(engine)
        return engine

    def _inputs(self, extras: Extras, num_steps: int, first: int) -> Inputs:
        """What a picture is conditioned on."""
        config = self.config
        return Inputs(
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            guided=config.guidance_scale > 1.0,
            height=config.height,
            width=config.width,
            num_steps=num_steps,
            first=first,
            sizes=[stage.sizes for stage in self.composition.stages],
            extras=extras,
        )

    def _first_step(self, extras: Extras, stepper: Stepper) -> int:
        """Where to begin: at the start, or later if there is a picture to start from."""
        config = self.config
        if config.image is None and extras.image is None:
            return 0
        first: int = self.backbone.first_step(config.num_inference_steps, config.strength) * stepper.order
        if first >= len(stepper.timesteps):
            raise ConfigError(
                f"strength {config.strength:g} of {config.num_inference_steps} steps leaves no step to do; "
                "raise the strength or the number of steps"
            )
        stepper.begin_at(first)
        return first

    def _refuse_large_views(self, engine: Engine) -> None:
        """Refuse views that the network cannot take, before anything is computed."""
        limit = self.backbone.max_view
        for step, _ in engine.stage_starts() if limit is not None else ():
            sides = {side for patches in engine.patches(step) for view in patches.views for side in view.shape}
            if max(sides) > limit:
                raise CapabilityError(
                    f"stage {step.stage + 1} has views of {max(sides)} latent cells a side, model "
                    f"{self.config.model!r} takes {limit} at most; use a method with windows, or a smaller picture"
                )
