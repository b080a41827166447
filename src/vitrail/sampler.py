"""The public face: one object that turns a sentence into a large picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from vitrail.backbones.source import find_model
from vitrail.comm.in_process import solo
from vitrail.core.composition import Composition
from vitrail.core.config import Loader
from vitrail.core.exchange import Exchange
from vitrail.core.log import logger
from vitrail.core.run_config import RunConfig
from vitrail.core.views import Canvas
from vitrail.discovery import registry
from vitrail.errors import ConfigError
from vitrail.methods import load_method
from vitrail.recipe import digest_of
from vitrail.result import Plan, Report, Result, StagePlan
from vitrail.session import Callback, OutputType, Session, Spread

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine import Engine
    from vitrail.core.step import Step


class Sampler:
    """A backbone and a method, ready to be called with a prompt."""

    def __init__(
        self, backbone: Any, composition: Composition, *, model: str, plugins: Iterable[tuple[str, object]] = ()
    ):
        composition.check(backbone.offers, f"model {model!r}")
        request = composition.attention_request()
        if request is not None:
            backbone.check_attention(request)
        self.backbone, self.composition, self.model = backbone, composition, model
        self._plugins = tuple(plugins)
        self._interrupt = False
        logger().info(
            "composition.resolved", model=model, digest=digest_of(repr(composition)), composition=repr(composition)
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str = "demo",
        method: str | Path | Composition = "asg-plus",
        *,
        device: str | None = None,
        dtype: str = "float32",
        plugins: Iterable[tuple[str, object]] = (),
    ) -> Sampler:
        """Load a model by name or folder.

        Args:
            model: ``demo`` or a folder in diffusers' layout.
            method: A registered name, a TOML or YAML file, or a composition.
            device: A torch device; the accelerator if there is one, else the CPU.
            dtype: Of the networks.
            plugins: (name, plugin) pairs that wrap or observe this sampler's stages.

        Raises:
            VitrailError: Before any weight is loaded, if the method is wrong or does not fit the model.
        """
        composition = method if isinstance(method, Composition) else load_method(method)
        spec = find_model(model, registry())
        composition.check(spec.offers, f"model {model!r}")
        return cls(spec.load(device, dtype), composition, model=model, plugins=plugins)

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        method: str | Path | Composition = "asg-plus",
        *,
        plugins: Iterable[tuple[str, object]] = (),
    ) -> Sampler:
        """Use a diffusers pipeline that is already loaded; it is left as it was found."""
        from vitrail.backbones.stable_diffusion import StableDiffusion, StableDiffusionBackbone

        if type(pipe).__name__ not in StableDiffusion.pipelines:
            raise ConfigError(f"from_pipeline takes {', '.join(StableDiffusion.pipelines)}, got {type(pipe).__name__}")
        composition = method if isinstance(method, Composition) else load_method(method)
        return cls(StableDiffusionBackbone(pipe), composition, model="pipeline", plugins=plugins)

    def interrupt(self) -> None:
        """Stop at the next step; may be called from a callback, a signal handler or another thread."""
        self._interrupt = True

    def plan(self, config: RunConfig) -> Plan:
        """What a run would do; costs no model call."""
        engine = self.engine(config, config.seed)
        stages = []
        for step in (s for s in engine.steps() if s.stage_step == 0):
            stage = self.composition.stages[step.stage]
            names = " · ".join(type(strategy).__name__ for _, strategy in stage.strategies())
            stages.append(
                StagePlan(
                    stage=step.stage,
                    first_step=step.index,
                    num_steps=step.stage_num_steps,
                    num_views=engine.count_views(step),
                    strategies=names,
                )
            )
        return Plan(stages=tuple(stages), canvas=engine.canvas, model_calls=engine.count_rows())

    def __call__(
        self,
        prompt: str,
        *,
        height: int = 512,
        width: int = 512,
        seed: int = 0,
        callback_on_step_end: Callback | None = None,
        output_type: OutputType = "pil",
        latents: Tensor | None = None,
        spread: Spread | None = None,
        **options: Any,
    ) -> Result:
        """Sample.

        Args:
            prompt: One sentence.
            height: Pixels, 64 or more; any number.
            width: Pixels, 64 or more; any number.
            seed: Of all randomness; picture i of several has ``seed + i``.
            callback_on_step_end: In diffusers' form, ``(sampler, step, timestep, {"latents": ...})``; may
                return replaced latents.
            output_type: ``pil``, ``pt`` or ``latent``.
            latents: Standard normal noise to start from instead of the seed's,
                Float32[Tensor, "1 channels height width"].
            spread: The ranks of the run and its checkpoint; every rank makes the same call.
            options: The other fields of ``RunConfig``: ``negative_prompt``, ``num_inference_steps``,
                ``guidance_scale``, ``scheduler``, ``num_images``, ``row_batch``.

        Raises:
            ConfigError: For an unknown option or a value out of range.
            PredictionError: If a step gives values that are not finite.
        """
        unknown = set(options) & {"method", "model"}
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))} belong to from_pretrained, not to the call")
        table = {"prompt": prompt, "height": height, "width": width, "seed": seed, **options}
        config = Loader(registry()).structure(table, RunConfig, "sampler(...)")
        return self.run(config, callback_on_step_end, output_type, latents, spread)

    def run(
        self,
        config: RunConfig,
        callback: Callback | None = None,
        output_type: OutputType = "pil",
        latents: Tensor | None = None,
        spread: Spread | None = None,
    ) -> Result:
        """Sample what a config says; see ``__call__``."""
        if output_type not in ("pil", "pt", "latent"):
            raise ConfigError(f"output_type must be pil, pt or latent, got {output_type!r}")
        self._interrupt = False
        config = evolve(config, model=self.model)
        return Session(self, config, callback, output_type, spread or Spread(), lambda: self._interrupt).run(latents)

    def engine(self, config: RunConfig, seed: int, exchange: Exchange | None = None, watched: bool = False) -> Engine:
        """The loop of one picture, ready to run.

        Args:
            config: The run.
            seed: Of this picture.
            exchange: The ranks; None is one alone.
            watched: Whether somebody looks at the canvas after every step.
        """
        from vitrail.core.engine import Engine
        from vitrail.core.noise_schedule import Stepper
        from vitrail.core.stages import Answers, Stages
        from vitrail.core.streams import Streams

        request = self.composition.attention_request()
        backbone, streams = self.backbone, Streams(seed)
        stepper = Stepper(backbone.new_scheduler(config.scheduler), config.num_inference_steps)
        conditioning: list[Any] = []

        def predict(step: Step, rows: Any) -> Any:
            if not conditioning:  # text is encoded at the first model call, so that a plan costs none
                conditioning.append(backbone.encode_prompt(config.prompt, config.negative_prompt, request))
            return backbone.predict(rows, step, stepper.timesteps[step.index], conditioning[0])

        factor = backbone.vae_scale_factor
        canvas = Canvas(-(-config.height // factor), -(-config.width // factor), backbone.native_size)
        answers = Answers(self.composition, predict, backbone.latent_channels, streams)
        return Engine(
            composition=self.composition,
            stages=Stages(answers, self._plugins),
            stepper=stepper,
            canvas=self.composition.pad(canvas, len(stepper.schedule.timesteps)),
            streams=streams,
            branches=("uncond", "cond") if config.guidance_scale > 1.0 else ("cond",),
            guidance_scale=config.guidance_scale,
            row_batch=config.row_batch,
            exchange=exchange or Exchange.among(solo()),
            watched=watched,
        )


__all__: Sequence[str] = ["Plan", "Report", "Result", "Sampler", "Spread"]
