"""One call of a sampler, from a config to pictures, on one rank or many."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, cast

from attrs import asdict, evolve

from vitrail.comm.backends.in_process import solo
from vitrail.comm.trace.chrome import as_data, from_data
from vitrail.core.config.log import logger
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.checkpoint import Checkpoints, kept_row_batch
from vitrail.core.engine.cpu_threads import threads_in_bits, threads_of
from vitrail.core.engine.dataflow_plan import goes_apart, needs_barrier
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.loop import Loop
from vitrail.core.engine.rank_comparison import agree
from vitrail.core.engine.run_state import Sampled
from vitrail.core.method.members import combines_branches
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CommError, ConfigError, Interrupted, VitrailError
from vitrail.sampling.call_options import Call
from vitrail.sampling.call_pictures import in_sequence
from vitrail.sampling.callbacks import SETTABLE, CallbackRun, copied, taken, wanted_inputs
from vitrail.sampling.differentiation import without_graph
from vitrail.sampling.discovery import registered_name
from vitrail.sampling.finishing import finished_picture
from vitrail.sampling.input_digests import content_digest, given_digests
from vitrail.sampling.kept_latents import latents_kept
from vitrail.sampling.output_types import as_output
from vitrail.sampling.picture_reader import read as read_picture
from vitrail.sampling.previews import preview
from vitrail.sampling.recipe import Recipe, digest_of
from vitrail.sampling.region_masks import mask_digests
from vitrail.sampling.result import Report, Result
from vitrail.sampling.run_plugins import wrapping
from vitrail.sampling.start_picture import open_picture

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.comm.trace.recording import Recorder
    from vitrail.core.engine.conditioning_cache import Conditions
    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.memory_backoff import MemoryBackoff
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.sampling.builder import Builder


class Session:
    """One running call of a sampler."""

    def __init__(self, builder: Builder, call: Call, sampler: object):
        """Prepare a run.

        Args:
            builder: Builds plans and engines.
            call: Arguments of the call.
            sampler: The sampler, for callbacks.
        """
        self._builder, self._sampler = builder, sampler
        self._call, self._spread = call, call.spread
        self._communicator = call.spread.communicator or solo()
        self._log = logger().bind(run_id=digest_of(repr(call.config)), rank=self._communicator.rank)
        self._stopped = self._started = False
        self._image: Image | None = None  # from a file, read once
        self._caller_image: Image | Tensor | None = None  # from the caller, read once
        self._given: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._plugins = wrapping(builder.plugins)
        self._first = 0
        self._split: Communicator | None = None
        self._wanted: tuple[str, ...] = ()  # names of the tensors that the callback receives
        self._backoff: MemoryBackoff | None = None  # one for all pictures, so that the limit is kept
        self._plan: RunPlan | None = None  # plan of the next picture
        self._enlarges = False  # whether decoded pictures are enlarged
        self._workers = 1

    @property
    def _config(self) -> RunConfig:
        """Settings of the run, including those resolved for this machine."""
        return self._builder.config

    def run(self) -> Result:
        """Sample and decode all pictures; the backbone is released afterwards, also after an error."""
        self._communicator.trace.restart()
        try:
            with threads_of(self._builder.backbone) as threads:
                self._workers = max(1, threads // self._communicator.world_size)
                return self._run()
        finally:
            self._builder.backbone.release()

    def _run(self) -> Result:
        import torch

        begin = time.perf_counter()
        self._read_inputs()
        try:
            with without_graph(self._builder.composition):
                self._check_alike()
                self._builder = evolve(self._builder, config=self._resolved())
                self._check_texts()
                checkpoints = self._open_checkpoints()
                done: list[Sampled] = []
                with self._finished_kept(done):
                    for number in range(len(self._call.pictures)):
                        if not self._stopped:
                            done.append(self._sample(number, checkpoints))
                begun = [one for one in done if one.steps > self._first]  # one stopped before its first step is empty
                done = begun or done[:1]
                final = torch.cat([one.latents for one in done])
                decoding = time.perf_counter()
                recipes = [self._recipe(number) for number in range(len(done))]
                with latents_kept(final, recipes):  # another rank may still fail
                    self._close_split()
                    output = self._call.output_type
                    decoded = [] if output == "latent" else self._decode(final)
                    images = final if output == "latent" else as_output(decoded, output, self._builder.backbone)
                    now = time.perf_counter()
                    notes, traces = self._notes(), self._traces()
        except CommError:
            raise  # reported once for all ranks
        except VitrailError as error:
            if self._started:  # earlier errors are reported by the exception alone
                self._log.info("run.failed", error=str(error))  # info only, since it is raised as well
            raise
        report = self._report(done, len(decoded), now - decoding, notes)
        self._log.info(
            "run.finished",
            duration_s=round(now - begin, 3),
            predict_s=round(report.predict_s, 3),
            decode_s=round(report.decode_s, 3),
            steps=report.steps,
            model_calls=report.model_calls,
        )
        return Result(images=images, latents=final, report=report, recipes=recipes, traces=traces)

    def _read_inputs(self) -> None:
        """Read start pictures, and record the digests of what a recipe does not store."""
        config = self._config
        self._image = None if config.image is None else open_picture(config.image)
        self._caller_image = self._read_image()
        masks = mask_digests(config.regions, self._builder.masks)
        self._given = given_digests(self._call.extras, self._image) | masks
        self._files = self._builder.composition.digests(registered_name)
        offered = self._builder.backbone.callback_inputs
        self._wanted = wanted_inputs(self._call.callback, self._call.tensor_inputs, offered)

    def _report(self, done: Sequence[Sampled], pictures: int, decode_s: float, notes: Sequence[str]) -> Report:
        """Return what the run did, for all pictures together.

        Args:
            done: What was sampled.
            pictures: Number of decoded pictures.
            decode_s: Duration of their decoding, seconds.
            notes: See ``_notes``.
        """
        costs = [one.timings.cost for one in done]
        return Report(
            steps=sum(one.steps - self._first for one in done),
            model_calls=sum(one.timings.rows for one in done),
            vae_decodes=sum(cost.decodes for cost in costs) + pictures,
            vae_encodes=sum(cost.encodes for cost in costs),
            gradients=sum(cost.gradients for cost in costs),
            upscalings=sum(cost.upscalings for cost in costs) + pictures * self._enlarges,
            predict_s=sum(one.timings.predict_s for one in done),
            engine_s=sum(one.timings.total_s for one in done),
            decode_s=decode_s,
            interrupted=self._stopped,
            notes=notes,
        )

    @contextmanager
    def _finished_kept(self, done: Sequence[Sampled]) -> Iterator[None]:
        """Attach the finished pictures to an interrupt that ends the sampling of further ones at once."""
        import torch

        try:
            yield
        except KeyboardInterrupt as error:
            if not done:
                raise
            recipes = [self._recipe(number) for number in range(len(done))]
            message = f"stopped at once; {len(done)} whole picture{'s' * (len(done) > 1)} had yet to be decoded"
            raise Interrupted(message, torch.cat([one.latents for one in done]), recipes) from error

    def _traces(self) -> list[Recorder]:
        """Return the events of every rank, on every rank."""
        communicator, own = self._communicator, self._communicator.trace.copy()
        if communicator.world_size == 1:
            return [own]
        data = as_data(own)
        return [from_data(communicator.broadcast_object(data, rank)) for rank in range(communicator.world_size)]

    def _notes(self) -> list[str]:
        """Return what every rank did because memory ran out, on every rank."""
        communicator, own = self._communicator, list(self._backoff.notes if self._backoff else ())
        if communicator.world_size == 1:
            return own
        every = [communicator.broadcast_object(own, rank) for rank in range(communicator.world_size)]
        return [f"rank {rank}: {note}" for rank, notes in enumerate(every) for note in notes]

    def _builder_of(self, number: int) -> Builder:
        """Return the builder of one picture, with its texts and seed."""
        return evolve(self._builder, config=self._call.pictures[number].of(self._config))

    def _recipe(self, number: int) -> Recipe:
        config = self._builder_of(number).config
        return Recipe.of(config, self._builder.composition, self._given, self._files, self._plugins)

    def _resolved(self) -> RunConfig:
        """Return the run with machine-dependent settings resolved, equally on every rank."""
        from vitrail.backbones.memory.forecast import resolve

        config = self._config
        if config.row_batch is None:
            packages = self._builder.composition.packages
            config = evolve(config, row_batch=kept_row_batch(self._spread.checkpoint, packages, self._communicator))
        return resolve(config, self._planned(0), self._communicator, self._builder.backbone)

    def _check_alike(self) -> None:
        """Refuse ranks that do not agree on the run; one exchange."""
        if self._communicator.world_size == 1:
            return
        plan, recipe = self._planned(0), self._recipe(0)
        flows, unwatched = self._spread.exchange == "dataflow", self._call.callback is None
        starts = [step for step, _ in plan.stage_starts()]
        independent = [unwatched and goes_apart(plan, step, flows) for step in starts]
        flowing = [flows and unwatched and not needs_barrier(plan, step) for step in starts]
        facts = {
            "run": json.dumps(self._config.as_table(), sort_keys=True),
            "prompts and seeds": repr(self._call.pictures),
            "composition": repr(self._builder.composition),
            "versions": json.dumps(recipe.versions, sort_keys=True),
            "given": json.dumps(recipe.given, sort_keys=True),
            "files of strategies": json.dumps(recipe.files, sort_keys=True),
            "plugins": json.dumps(recipe.plugins, sort_keys=True),
            "output": self._call.output_type,
            "weights": self._builder.backbone.fingerprint(),
            "threads an operator (OMP_NUM_THREADS)": str(threads_in_bits(self._builder.backbone) or 1),
            "plan": f"{self._communicator.world_size} ranks of speeds {list(self._spread.speeds)}, "
            f"independent in stages {independent}",
            "exchange": self._spread.exchange + (f", without a barrier in stages {flowing}" if flows else ""),
            "callback": f"given {', '.join(self._wanted)}" if self._call.callback else "none",
            "checkpoint": f"every {self._spread.checkpoint_every}" if self._spread.checkpoint else "none",
        }
        agree(self._communicator, facts)

    def _check_texts(self) -> None:
        """Refuse a later text that has not the words of attention maps while no picture is there to be lost."""
        conditions = self._planned(0).hooks.network.conditions
        if conditions.request is None:  # nothing is asked of the words of a text
            return
        texts = dict.fromkeys((each.prompt, each.negative_prompt) for each in self._call.pictures)
        for prompt, negative in list(texts)[1:]:
            inputs = evolve(conditions.inputs[0], prompt=prompt, negative_prompt=negative)
            self._builder.backbone.condition(inputs, conditions.request)

    def _open_checkpoints(self) -> Checkpoints | None:
        spread = self._spread
        if spread.checkpoint is None:
            return None
        found = self._builder.backbone.remembers()
        if found is not None:
            raise ConfigError(
                f"--checkpoint {spread.checkpoint}: the network remembers earlier forwards ({found.where}), which a "
                f"checkpoint does not hold; leave it out, or {found.remedy}"
            )
        recipe = self._recipe(0)
        kept: dict[str, object] = {"run": {**recipe.run, "num_images": self._config.num_images}}
        kept |= {"method": recipe.method, "versions": recipe.versions, "given": recipe.given}
        kept |= {name: part for name, part in (("files", recipe.files), ("plugins", recipe.plugins)) if part}
        if self._call.pictures != in_sequence(self._config):
            kept["pictures"] = {str(number): asdict(picture) for number, picture in enumerate(self._call.pictures)}
        threads = threads_in_bits(self._builder.backbone)
        kept |= {} if threads is None else {"OMP_NUM_THREADS": threads}
        packages = self._builder.composition.packages
        checkpoints = Checkpoints(spread.checkpoint, spread.checkpoint_every, kept, self._communicator, packages)
        checkpoints.open(self._device())
        return checkpoints

    def _sample(self, number: int, checkpoints: Checkpoints | None) -> Sampled:
        """Sample one picture; if the run was stopped, its latents are the clean prediction so far."""
        self._close_split()
        self._split = self._communicator.split(f"picture {number}")
        return self._sample_on(self._split, number, checkpoints)

    def _close_split(self) -> None:
        """Close the last picture's communicator; deferred, since a rank that failed meanwhile raises here."""
        if self._split is not None:
            self._split.close()
            self._split = None

    def _sample_on(self, communicator: Communicator, number: int, checkpoints: Checkpoints | None) -> Sampled:
        plan, builder = self._planned(number), self._builder_of(number)
        self._plan, self._first, num_steps = None, plan.first, len(plan.steps())
        if checkpoints is not None and number < len(checkpoints.finished):
            return Sampled(checkpoints.finished[number].to(self._device()), num_steps)
        loop = Loop(self._engine(builder, plan, communicator))
        self._check_start(plan)
        self._started, model_calls = True, plan.cost().model_calls
        self._log.info(
            "run.started",
            seed=builder.config.seed,
            num_inference_steps=self._config.num_inference_steps,
            height=self._config.height,
            width=self._config.width,
            model_calls=model_calls,
        )
        plan.hooks.run_start(num_steps, plan.canvas, model_calls)
        start = self._start(loop.engine)
        caller, conditions = self._begin_callback(builder, plan)

        def stop() -> bool:
            return self._call.stop() or bool(caller.interrupt)

        def guidance() -> tuple[float, float]:
            return caller.guidance_scale, caller.guidance_rescale

        def call_back(step: Step, new: Tensor, prediction: Prediction) -> Tensor:
            if self._call.callback is None:
                return new
            show = partial(self._preview, prediction, plan.phase(step).canvas, builder.config.seed)
            return self._call_back(plan, caller, conditions, step, new, show)

        with self._builder.backbone.adapters_kept() if self._call.callback else nullcontext():
            done = loop.run(start, stop, call_back, checkpoints, guidance if self._call.callback else None)
        if done.steps < num_steps:
            self._stopped = True
            done.latents = loop.shown(done)
            return done
        plan.hooks.run_end(done.latents)
        if checkpoints is not None:
            checkpoints.finish(done.latents)
        return done

    def _start(self, engine: Engine) -> Tensor:
        """Return the first latents: noise, or a picture with the noise of the first step that is done."""
        noise, stepper = self._noise(engine), engine.plan.phases[0].stepper
        picture = self._picture(engine)
        if picture is None:
            return noise * stepper.init_noise_sigma
        return stepper.noised(picture, noise, engine.plan.first)

    def _noise(self, engine: Engine) -> Tensor:
        shape, latents = self._shape(engine.plan), self._call.extras.latents
        noise: Tensor = engine.streams.normal(shape, "initial-latents") if latents is None else latents
        return self._as_canvas(noise)

    def _as_canvas(self, latents: Tensor) -> Tensor:
        """Convert caller-supplied latents to float32 on the model's device."""
        return latents.to(self._device()).float()

    def _check_start(self, plan: RunPlan) -> None:
        """Refuse latents or a picture that do not fit the first canvas, before the run is told to have started."""
        shape, latents, picture = self._shape(plan), self._call.extras.latents, self._call.extras.image
        if latents is not None and tuple(latents.shape) != shape:
            raise ConfigError(f"latents must be {shape} for this canvas, got {tuple(latents.shape)}")
        given = tuple(getattr(picture, "shape", ()))
        if picture is not None and self._caller_image is None and given != shape:
            raise ConfigError(
                f"image: floats of {given} may be a picture with alpha or latents of another canvas; "
                f"give the picture as Pillow or uint8, or latents of {shape}"
            )

    def _shape(self, plan: RunPlan) -> tuple[int, int, int, int]:
        canvas = plan.phases[0].canvas
        return (1, self._builder.backbone.latent_channels, canvas.height, canvas.width)

    def _read_image(self) -> Image | Tensor | None:
        """Read the caller's picture before anything is computed; None if it may be latents."""
        import torch

        image = self._call.extras.image
        channels = self._builder.backbone.latent_channels
        shape = tuple(getattr(image, "shape", ()))
        is_floats = isinstance(image, torch.Tensor) and image.is_floating_point()
        if image is None or (is_floats and len(shape) == 4 and shape[:2] == (1, channels)):
            return None  # may be latents, as the size of the canvas will show
        return read_picture(image, "image", alternative=f", or latents with {channels} channels")

    def _picture(self, engine: Engine) -> Tensor | None:
        """Return latents of the picture to start from, if there is one."""
        from vitrail.sampling.start_picture import pad_picture

        shape, picture, phase = self._shape(engine.plan), self._call.extras.image, engine.plan.phases[0]
        if picture is None and self._image is None:
            return None
        shown = self._image if picture is None else self._caller_image
        backbone = self._builder.backbone
        if tuple(getattr(picture, "shape", ())) == shape:
            return self._as_canvas(cast("Tensor", picture))
        assert shown is not None  # else it was refused before the run started
        read = backbone.read_picture(shown, *phase.picture).float()
        factor = backbone.vae_scale_factor
        read = pad_picture(read, factor * phase.canvas.height, factor * phase.canvas.width)
        noise = engine.streams.normal(shape, "image-latents").to(read.device)
        return backbone.encode(read, noise)

    def _begin_callback(self, builder: Builder, plan: RunPlan) -> tuple[CallbackRun, Conditions]:
        """Create what the callback receives for a picture, and the source of its tensors."""
        config, extras = self._config, self._call.extras
        fields = {
            "guidance_scale": config.guidance_scale,
            "guidance_rescale": config.guidance_rescale,
            "num_timesteps": len(plan.steps()) - plan.first,
            "clip_skip": extras.clip_skip,
            "cross_attention_kwargs": extras.cross_attention_kwargs,
            "joint_attention_kwargs": extras.joint_attention_kwargs,
        }
        caller = CallbackRun(self._sampler, self._builder.backbone.pipeline, fields, self._check_guidance)
        return caller, builder.conditions(extras, plan.phases)

    def _check_guidance(self, scale: float) -> None:
        """Refuse a guidance scale, set by a callback, that this run cannot change to."""
        if self._spread.checkpoint is not None:
            raise ConfigError("a callback set _guidance_scale, which a checkpoint does not keep; leave one of them out")
        if scale > 1 and self._config.guidance_scale <= 1:
            raise ConfigError(
                f"a callback set _guidance_scale to {scale:g}, but the run began without guidance, so nothing is "
                "encoded to guide away from; begin with a guidance_scale above 1"
            )
        names = [type(g).__name__ for s in self._builder.composition.stages for g in s.guidance if combines_branches(g)]
        if scale <= 1 and names:
            raise ConfigError(
                f"a callback set _guidance_scale to {scale:g}, which switches classifier-free guidance off, and "
                f"{names[0]} of the method combines its branches; keep it above 1"
            )

    def _call_back(
        self,
        plan: RunPlan,
        caller: CallbackRun,
        conditions: Conditions,
        step: Step,
        new: Tensor,
        show: Callable[[], Image],
    ) -> Tensor:
        """Call the callback after a step; return the latents that it leaves.

        Args:
            plan: What the run does.
            caller: The callback's first argument.
            conditions: Source of the callback's tensors.
            step: The step that is done.
            new: The latents after it, Float32[Tensor, "batch channels height width"].
            show: Decodes a preview.
        """
        callback = self._call.callback
        assert callback is not None
        stepper, guided = plan.phase(step).stepper, caller.do_classifier_free_guidance
        vars(caller)["scheduler"] = stepper.scheduler
        given: dict[str, CallbackValue] = {"latents": new} if "latents" in self._wanted else {}
        if self._wanted != tuple(given):
            made = self._builder.backbone.callback_tensors(conditions.at(step), step, guided)
            given = {name: new if name == "latents" else made[name] for name in self._wanted}
        before, kept, scale = copied(given), new.clone(), caller.guidance_scale
        with caller.showing(show):
            answer = callback(caller, step.index - plan.first, stepper.timestep(step), dict(given))
        latents = taken(answer, given, before, new, guided and not caller.do_classifier_free_guidance)
        changed = caller.guidance_scale != scale or not bool((latents == kept).all())
        if changed:
            self._given["callback_on_step_end"] = "changed the run"
        self._check_callbacks_alike(caller, latents)
        return latents

    def _preview(self, prediction: Prediction, canvas: Canvas, seed: int) -> Image:
        """Return a small picture of a prediction of the canvas, decoded by this rank alone."""
        trace, streams = self._communicator.trace, Streams(seed)
        with trace.span("compute", "preview"):
            return preview(prediction, canvas, self._builder.backbone, self._config.memory == "auto", streams)

    def _check_callbacks_alike(self, caller: CallbackRun, latents: Tensor) -> None:
        """Refuse callbacks that differ between ranks; one exchange per step."""
        if self._split is None or self._split.world_size == 1:
            return
        facts = {name: repr(getattr(caller, name)) for name in SETTABLE}
        changes = {f"what callbacks set as {name}": value for name, value in facts.items()}
        agree(self._split, {"the latents that callbacks left": content_digest(latents)} | changes)

    def _planned(self, number: int) -> RunPlan:
        """Return the plan of the next picture, made on first use."""
        if self._plan is None:
            builder = self._builder_of(number)
            self._plan = builder.plan(builder.config.seed, self._call.extras)
            self._enlarges = self._plan.enlarged is not None
        return self._plan

    def _engine(self, builder: Builder, plan: RunPlan, communicator: Communicator) -> Engine:
        exchange = Exchange.among(communicator, self._spread.speeds, self._workers, self._spread.exchange)
        engine = builder.engine(plan, exchange, self._call.callback is not None, self._backoff)
        self._backoff = engine.forwards.backoff
        return engine

    def _decode(self, latents: Tensor) -> list[Tensor]:
        exchange = Exchange.among(self._communicator, self._spread.speeds, self._workers)
        finish, builders = self._builder.composition.finish, map(self._builder_of, range(len(latents)))
        return [
            finished_picture(one[None], finish, builder.config, builder.backbone, exchange)
            for one, builder in zip(latents, builders, strict=True)
        ]

    def _device(self) -> torch.device:
        return self._builder.backbone.device
