"""One call of a sampler, from a config to pictures, on one rank or many."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, cast

import attrs
from attrs import evolve

from vitrail.call import Call
from vitrail.comm.agreement import agree
from vitrail.comm.chrome import as_data, from_data
from vitrail.comm.in_process import solo
from vitrail.core.checkpoint import Checkpoints, kept_row_batch
from vitrail.core.cpu_threads import threads_of
from vitrail.core.exchange import Exchange
from vitrail.core.log import logger
from vitrail.core.run_config import RunConfig
from vitrail.core.run_state import Sampled
from vitrail.digests import given_digests
from vitrail.errors import CommAborted, ConfigError, VitrailError
from vitrail.gradients import without_graph
from vitrail.kept_latents import latents_kept
from vitrail.picture import open_picture
from vitrail.recipe import Recipe, digest_of
from vitrail.result import Report, Result

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.comm.trace import Recorder
    from vitrail.core.engine import Engine
    from vitrail.core.forwarding import Forwarding
    from vitrail.core.step import Step
    from vitrail.sampler import Sampler


class Session:
    """A run in work."""

    def __init__(self, sampler: Sampler, call: Call):
        self._sampler, self._call, self._config, self._spread = sampler, call, call.config, call.spread
        self._communicator = call.spread.communicator or solo()
        self._began = self._communicator.trace.clock()
        self._log = logger().bind(run_id=digest_of(repr(call.config)), rank=self._communicator.rank)
        self._stopped = False
        self._image: Image | None = None  # the file's, read once
        self._given: dict[str, str] = {}
        self._first = 0
        self._split: Communicator | None = None
        self._forwarding: Forwarding | None = None  # one for all pictures, so that what was learnt stays
        self._workers = 1

    def run(self) -> Result:
        """Sample and decode all pictures; the backbone is released afterwards, however it ends."""
        try:
            with threads_of(self._sampler.backbone) as threads:
                self._workers = max(1, threads // self._communicator.world_size)
                return self._run()
        finally:
            self._sampler.backbone.release()

    def _run(self) -> Result:
        import torch

        config, begin = self._config, time.perf_counter()
        self._image = None if config.image is None else open_picture(config.image)
        self._given = given_digests(self._call.extras, self._image)
        seeds = range(config.seed, config.seed + config.num_images)
        try:
            with without_graph(self._sampler.composition):
                self._check_alike()
                self._config = self._resolved()
                checkpoints = self._open_checkpoints()
                done = []
                for seed in seeds:
                    if not self._stopped:
                        done.append(self._sample(seed, checkpoints))
                begun = [one for one in done if one.steps > self._first]  # one that was stopped at once shows nothing
                done = begun or done[:1]
                final = torch.cat([one.latents for one in done])
                decoding = time.perf_counter()
                recipes = [self._recipe(seed) for seed in seeds[: len(done)]]
                with latents_kept(final, recipes):  # as long as another rank may still fail
                    self._close_split()
                    images = [] if self._call.output_type == "latent" else self._decode(final)
                    now = time.perf_counter()
                    notes, traces = self._notes(), self._traces()
        except CommAborted:
            raise  # told by the rank where it began
        except VitrailError as error:
            self._log.error("run.failed", error=str(error))
            raise
        report = Report(
            steps=sum(one.steps - self._first for one in done),
            model_calls=sum(one.timings.rows for one in done),
            vae_decodes=sum(one.timings.cost.decodes for one in done) + len(images),
            vae_encodes=sum(one.timings.cost.encodes for one in done),
            gradients=sum(one.timings.cost.gradients for one in done),
            predict_s=sum(one.timings.predict_s for one in done),
            engine_s=sum(one.timings.total_s for one in done),
            decode_s=now - decoding,
            interrupted=self._stopped,
            notes=notes,
        )
        self._log.info(
            "run.finished",
            duration_s=round(now - begin, 3),
            predict_s=round(report.predict_s, 3),
            decode_s=round(report.decode_s, 3),
            steps=report.steps,
            model_calls=report.model_calls,
        )
        return Result(images=images, latents=final, report=report, recipes=recipes, traces=traces)

    def _traces(self) -> list[Recorder]:
        """What every rank did, on every rank."""
        communicator, own = self._communicator, self._communicator.trace.since(self._began)
        if communicator.world_size == 1:
            return [own]
        data = as_data(own)
        return [from_data(communicator.broadcast_object(data, rank)) for rank in range(communicator.world_size)]

    def _notes(self) -> list[str]:
        """What every rank did for want of memory, on every rank."""
        communicator, own = self._communicator, list(self._forwarding.notes if self._forwarding else ())
        if communicator.world_size == 1:
            return own
        every = [communicator.broadcast_object(own, rank) for rank in range(communicator.world_size)]
        return [f"rank {rank}: {note}" for rank, notes in enumerate(every) for note in notes]

    def _recipe(self, seed: int) -> Recipe:
        config = evolve(self._config, seed=seed, num_images=1)
        return Recipe.of(config, self._sampler.composition, self._given)

    def _resolved(self) -> RunConfig:
        """The run with what is left to this machine decided; the same on every rank."""
        from vitrail.backbones.memory import resolve

        config = self._config
        if config.row_batch is None:
            config = evolve(config, row_batch=kept_row_batch(self._spread.checkpoint, self._communicator))
        return resolve(config, self._engine(config.seed, self._communicator), self._sampler.backbone)

    def _check_alike(self) -> None:
        """Whether all ranks mean the same run; costs one exchange."""
        if self._communicator.world_size == 1:
            return
        engine, recipe = self._engine(self._config.seed, self._communicator), self._recipe(self._config.seed)
        relays = [engine.can_relay(step) for step, _ in engine.stage_starts()]
        facts = {
            "run": json.dumps(attrs.asdict(self._config), sort_keys=True),
            "composition": repr(self._sampler.composition),
            "versions": json.dumps(recipe.versions, sort_keys=True),
            "given": json.dumps(recipe.given, sort_keys=True),
            "output": self._call.output_type,
            "weights": self._sampler.backbone.fingerprint(),
            "plan": f"{self._communicator.world_size} ranks of speeds {list(self._spread.speeds)}, relays {relays}",
            "checkpoint": f"every {self._spread.checkpoint_every}" if self._spread.checkpoint else "none",
        }
        agree(self._communicator, facts)

    def _open_checkpoints(self) -> Checkpoints | None:
        spread = self._spread
        if spread.checkpoint is None:
            return None
        recipe = self._recipe(self._config.seed)
        kept: dict[str, Any] = {"run": {**recipe.run, "num_images": self._config.num_images}}
        kept |= {"method": recipe.method, "versions": recipe.versions, "given": recipe.given}
        checkpoints = Checkpoints(spread.checkpoint, spread.checkpoint_every, kept, self._communicator)
        checkpoints.open(self._device())
        return checkpoints

    def _sample(self, seed: int, checkpoints: Checkpoints | None) -> Sampled:
        """One picture's latents, clean as predicted so far if the run was stopped."""
        self._close_split()
        number = seed - self._config.seed
        self._split = self._communicator.split(f"picture {number}")
        return self._sample_on(self._split, number, seed, checkpoints)

    def _close_split(self) -> None:
        """Close the last picture's communicator; late, since a rank that failed meanwhile raises here."""
        if self._split is not None:
            self._split.close()
            self._split = None

    def _sample_on(
        self,
        communicator: Communicator,
        number: int,
        seed: int,
        checkpoints: Checkpoints | None,
    ) -> Sampled:
        engine = self._engine(seed, communicator)
        self._first = engine.first
        if checkpoints is not None and number < len(checkpoints.finished):
            return Sampled(checkpoints.finished[number].to(self._device()), len(engine.steps()))
        model_calls = engine.cost().model_calls
        self._log.info(
            "run.started",
            seed=seed,
            num_inference_steps=self._config.num_inference_steps,
            height=self._config.height,
            width=self._config.width,
            model_calls=model_calls,
        )
        engine.stages.run_start(len(engine.steps()), engine.canvas, model_calls)
        start, stop = self._start(engine), self._call.stop
        done = engine.run(start, stop, lambda step, new: self._call_back(engine, step, new), checkpoints)
        if done.steps < len(engine.steps()):
            self._stopped = True
            done.latents = engine.shown(done)
            return done
        engine.stages.run_end(done.latents)
        if checkpoints is not None:
            checkpoints.finish(done.latents)
        return done

    def _start(self, engine: Engine) -> Tensor:
        """The first latents: noise, or a picture with the noise of the step to begin at."""
        noise, stepper = self._noise(engine).to(self._device()), engine.phases[0].stepper
        picture = self._picture(engine)
        if picture is None:
            return noise * stepper.init_noise_sigma
        return stepper.noised(picture, noise, engine.first)

    def _noise(self, engine: Engine) -> Tensor:
        shape, latents = self._shape(engine), self._call.extras.latents
        noise: Tensor = engine.streams.normal(shape, "initial-latents") if latents is None else latents
        if tuple(noise.shape) != shape:
            raise ConfigError(f"latents must be {shape} for this canvas, got {tuple(noise.shape)}")
        return noise

    def _shape(self, engine: Engine) -> tuple[int, int, int, int]:
        canvas = engine.phases[0].canvas
        return (1, self._sampler.backbone.latent_channels, canvas.height, canvas.width)

    def _picture(self, engine: Engine) -> Tensor | None:
        """Latents of the picture to start from, if there is one."""
        from vitrail.picture import pad_picture, upright

        shape, picture, phase = self._shape(engine), self._call.extras.image, engine.phases[0]
        if picture is None and self._image is None:
            return None
        backbone = self._sampler.backbone
        if tuple(getattr(picture, "shape", ())) == shape:
            return cast("Tensor", picture).to(self._device())
        picture = self._image if picture is None else upright(picture, shape)
        read = backbone.read_picture(picture, *phase.picture)
        factor = backbone.vae_scale_factor
        read = pad_picture(read, factor * phase.canvas.height, factor * phase.canvas.width)
        noise = engine.streams.normal(shape, "image-latents").to(read.device)
        return cast("Tensor", backbone.encode(read, noise))

    def _call_back(self, engine: Engine, step: Step, new: Tensor) -> Tensor:
        if self._call.callback is None:
            return new
        timestep = engine.phases[step.phase].stepper.timestep(step)
        given = self._call.callback(self._sampler, step.index, timestep, {"latents": new})
        replaced: Tensor = (given or {}).get("latents", new)
        return replaced

    def _engine(self, seed: int, communicator: Communicator) -> Engine:
        exchange = Exchange.among(communicator, self._spread.speeds, self._workers)
        watched = self._call.callback is not None
        engine = self._sampler.engine(self._config, seed, exchange, watched, self._call.extras, self._forwarding)
        self._forwarding = engine.viewing.predictor.forwarding
        return engine

    def _decode(self, latents: Tensor) -> list[Any]:
        backbone, config = self._sampler.backbone, self._config
        exchange = Exchange.among(self._communicator, self._spread.speeds, self._workers)
        with self._communicator.trace.span("compute", "decode"):
            decoded = [backbone.decode(one[None], exchange, config.wrap, config.memory == "auto") for one in latents]
        pictures = [picture[..., : config.height, : config.width] for picture in decoded]
        if self._call.output_type == "pt":
            return [picture[0] for picture in pictures]
        return [backbone.to_pil(picture)[0] for picture in pictures]

    def _device(self) -> Any:
        return getattr(self._sampler.backbone, "device", None)
