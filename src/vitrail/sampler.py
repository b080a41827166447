"""The public face: one object that turns a sentence into a large picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve

from vitrail.backbones.source import find_model
from vitrail.core.composition import Composition
from vitrail.core.config import Loader
from vitrail.core.log import logger
from vitrail.core.run_config import RunConfig
from vitrail.core.views import Canvas
from vitrail.discovery import registry
from vitrail.errors import ConfigError, VitrailError
from vitrail.methods import load_method
from vitrail.recipe import Recipe, digest_of
from vitrail.result import Plan, Report, Result, StagePlan

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine import Engine, Timings
    from vitrail.core.step import Step

OutputType = Literal["pil", "pt", "latent"]


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
        engine = self._engine(config, config.seed)
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
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None] | None = None,
        output_type: OutputType = "pil",
        latents: Tensor | None = None,
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
        return self.run(config, callback_on_step_end, output_type, latents)

    def run(
        self,
        config: RunConfig,
        callback: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None] | None = None,
        output_type: OutputType = "pil",
        latents: Tensor | None = None,
    ) -> Result:
        """Sample what a config says; see ``__call__``."""
        import torch

        if output_type not in ("pil", "pt", "latent"):
            raise ConfigError(f"output_type must be pil, pt or latent, got {output_type!r}")
        self._interrupt = False
        config = evolve(config, model=self.model)
        log, begin = logger().bind(run_id=digest_of(repr(config))), time.perf_counter()
        done: list[tuple[Tensor, Timings, int, bool]] = []
        try:
            with torch.inference_mode():
                for seed in range(config.seed, config.seed + config.num_images):
                    if not self._interrupt:
                        done.append(self._sample(config, seed, callback, latents, log))
                final = torch.cat([item[0] for item in done])
                decoding = time.perf_counter()
                images = [] if output_type == "latent" else self._decode(final, config, output_type)
        except VitrailError as error:
            log.error("run.failed", error=str(error))
            raise
        now = time.perf_counter()
        report = Report(
            steps=sum(item[2] for item in done),
            model_calls=sum(item[1].rows for item in done),
            predict_s=sum(item[1].predict_s for item in done),
            engine_s=sum(item[1].total_s for item in done),
            decode_s=now - decoding,
            interrupted=len(done) < config.num_images or not done[-1][3],
        )
        log.info(
            "run.finished",
            duration_s=round(now - begin, 3),
            predict_s=round(report.predict_s, 3),
            decode_s=round(report.decode_s, 3),
            steps=report.steps,
            model_calls=report.model_calls,
        )
        seeds = range(config.seed, config.seed + len(done))
        recipes = [Recipe.of(evolve(config, seed=seed, num_images=1), self.composition) for seed in seeds]
        return Result(images=images, latents=final, report=report, recipes=recipes)

    def _sample(
        self, config: RunConfig, seed: int, callback: Any, latents: Tensor | None, log: Any
    ) -> tuple[Tensor, Timings, int, bool]:
        """One picture's latents, clean as predicted so far if the run was interrupted; and whether it is complete."""
        engine = self._engine(config, seed)
        canvas, device = engine.canvas, self._device()
        shape = (1, self.backbone.latent_channels, canvas.height, canvas.width)
        noise = engine.streams.normal(shape, "initial-latents") if latents is None else latents
        if tuple(noise.shape) != shape:
            raise ConfigError(f"latents must be {shape} for this canvas, got {tuple(noise.shape)}")
        model_calls = engine.count_rows()
        log.info(
            "run.started",
            seed=seed,
            num_inference_steps=config.num_inference_steps,
            height=config.height,
            width=config.width,
            model_calls=model_calls,
        )
        engine.stages.run_start(len(engine.steps()), canvas, model_calls)
        start = noise.to(device) * engine.stepper.init_noise_sigma
        count = 0

        def on_step(step: Step, new: Tensor) -> Tensor:
            nonlocal count
            count += 1
            if callback is None:
                return new
            given = callback(self, step.index, engine.stepper.timesteps[step.index], {"latents": new})
            replaced: Tensor = (given or {}).get("latents", new)
            return replaced

        final, prediction, timings = engine.run(start, lambda: self._interrupt, on_step)
        complete = count == len(engine.steps())
        if not complete and prediction is not None:
            return prediction.clean, timings, count, False
        engine.stages.run_end(final)
        return final, timings, count, complete

    def _engine(self, config: RunConfig, seed: int) -> Engine:
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
        )

    def _decode(self, latents: Tensor, config: RunConfig, output_type: OutputType) -> list[Any]:
        pictures = [self.backbone.decode(one[None])[..., : config.height, : config.width] for one in latents]
        if output_type == "pt":
            return [picture[0] for picture in pictures]
        return [self.backbone.to_pil(picture)[0] for picture in pictures]

    def _device(self) -> Any:
        return getattr(self.backbone, "device", None)


__all__: Sequence[str] = ["Plan", "Report", "Result", "Sampler"]
