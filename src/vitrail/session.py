"""One call of a sampler, from a config to pictures, on one rank or many."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import evolve, frozen

from vitrail.comm.agreement import agree
from vitrail.comm.chrome import as_data, from_data
from vitrail.comm.in_process import solo
from vitrail.core.checkpoint import Checkpoints
from vitrail.core.exchange import Exchange
from vitrail.core.log import logger
from vitrail.core.run_config import RunConfig
from vitrail.core.run_state import Sampled
from vitrail.errors import CommAborted, ConfigError, VitrailError
from vitrail.recipe import Recipe, digest_of
from vitrail.result import Report, Result

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.comm.trace import Recorder
    from vitrail.core.engine import Engine
    from vitrail.core.step import Step
    from vitrail.sampler import Sampler

OutputType = Literal["pil", "pt", "latent"]
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]


@frozen(kw_only=True)
class Spread:
    """How a run is spread over ranks and kept; none of it reaches the picture.

    Attributes:
        communicator: Of this rank; None is one rank alone.
        speeds: Relative speeds of the ranks, alike on all; () for equal ones.
        checkpoint: A file to go on from and to write, or None.
        checkpoint_every: Steps between two writes.
    """

    communicator: Communicator | None = None
    speeds: Sequence[float] = ()
    checkpoint: Path | None = None
    checkpoint_every: int = 5


class Session:
    """A run in work."""

    def __init__(
        self,
        sampler: Sampler,
        config: RunConfig,
        callback: Callback | None,
        output_type: OutputType,
        spread: Spread,
        stop: Callable[[], bool],
    ):
        self._sampler, self._config, self._callback, self._output_type = sampler, config, callback, output_type
        self._spread, self._stop = spread, stop
        self._communicator = spread.communicator or solo()
        self._began = self._communicator.trace.clock()
        self._log = logger().bind(run_id=digest_of(repr(config)), rank=self._communicator.rank)
        self._stopped = False

    def run(self, latents: Tensor | None) -> Result:
        """Sample and decode all pictures.

        Args:
            latents: Standard normal noise to start from, or None for the seed's.
        """
        import torch

        config, begin = self._config, time.perf_counter()
        seeds = range(config.seed, config.seed + config.num_images)
        try:
            with torch.inference_mode():
                self._check_alike()
                checkpoints = self._open_checkpoints()
                done = []
                for seed in seeds:
                    if not self._stopped:
                        done.append(self._sample(seed, latents, checkpoints))
                done = [one for one in done if one.steps] or done[:1]  # one that was stopped at once shows nothing
                final = torch.cat([one.latents for one in done])
                decoding = time.perf_counter()
                images = [] if self._output_type == "latent" else self._decode(final)
        except CommAborted:
            raise  # told by the rank where it began
        except VitrailError as error:
            self._log.error("run.failed", error=str(error))
            raise
        now = time.perf_counter()
        report = Report(
            steps=sum(one.steps for one in done),
            model_calls=sum(one.timings.rows for one in done),
            predict_s=sum(one.timings.predict_s for one in done),
            engine_s=sum(one.timings.total_s for one in done),
            decode_s=now - decoding,
            interrupted=self._stopped,
        )
        self._log.info(
            "run.finished",
            duration_s=round(now - begin, 3),
            predict_s=round(report.predict_s, 3),
            decode_s=round(report.decode_s, 3),
            steps=report.steps,
            model_calls=report.model_calls,
        )
        recipes = [self._recipe(seed) for seed in seeds[: len(done)]]
        return Result(images=images, latents=final, report=report, recipes=recipes, traces=self._traces())

    def _traces(self) -> list[Recorder]:
        """What every rank did, on every rank."""
        communicator, own = self._communicator, self._communicator.trace.since(self._began)
        if communicator.world_size == 1:
            return [own]
        data = as_data(own)
        return [from_data(communicator.broadcast_object(data, rank)) for rank in range(communicator.world_size)]

    def _recipe(self, seed: int) -> Recipe:
        return Recipe.of(evolve(self._config, seed=seed, num_images=1), self._sampler.composition)

    def _check_alike(self) -> None:
        """Whether all ranks mean the same run; costs one exchange."""
        if self._communicator.world_size == 1:
            return
        engine, recipe = self._engine(self._config.seed, self._communicator), self._recipe(self._config.seed)
        relays = [engine.can_relay(stage) for stage in range(len(self._sampler.composition.stages))]
        facts = {
            "run": json.dumps(attrs.asdict(self._config), sort_keys=True),
            "composition": repr(self._sampler.composition),
            "versions": json.dumps(recipe.versions, sort_keys=True),
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
        kept |= {"method": recipe.method, "versions": recipe.versions}
        checkpoints = Checkpoints(spread.checkpoint, spread.checkpoint_every, kept, self._communicator)
        checkpoints.open(self._device())
        return checkpoints

    def _sample(self, seed: int, latents: Tensor | None, checkpoints: Checkpoints | None) -> Sampled:
        """One picture's latents, clean as predicted so far if the run was stopped."""
        number = seed - self._config.seed
        communicator = self._communicator.split(f"picture {number}")
        done = self._sample_on(communicator, number, seed, latents, checkpoints)
        communicator.close()
        return done

    def _sample_on(
        self,
        communicator: Communicator,
        number: int,
        seed: int,
        latents: Tensor | None,
        checkpoints: Checkpoints | None,
    ) -> Sampled:
        engine = self._engine(seed, communicator)
        if checkpoints is not None and number < len(checkpoints.finished):
            return Sampled(checkpoints.finished[number].to(self._device()), len(engine.steps()))
        model_calls = engine.count_rows()
        self._log.info(
            "run.started",
            seed=seed,
            num_inference_steps=self._config.num_inference_steps,
            height=self._config.height,
            width=self._config.width,
            model_calls=model_calls,
        )
        engine.stages.run_start(len(engine.steps()), engine.canvas, model_calls)
        start = self._noise(engine, latents).to(self._device()) * engine.stepper.init_noise_sigma
        done = engine.run(start, self._stop, lambda step, new: self._call_back(engine, step, new), checkpoints)
        if done.steps < len(engine.steps()):
            self._stopped = True
            if done.prediction is not None:
                done.latents = done.prediction.clean
            return done
        engine.stages.run_end(done.latents)
        if checkpoints is not None:
            checkpoints.finish(done.latents)
        return done

    def _noise(self, engine: Engine, latents: Tensor | None) -> Tensor:
        shape = (1, self._sampler.backbone.latent_channels, engine.canvas.height, engine.canvas.width)
        noise = engine.streams.normal(shape, "initial-latents") if latents is None else latents
        if tuple(noise.shape) != shape:
            raise ConfigError(f"latents must be {shape} for this canvas, got {tuple(noise.shape)}")
        return noise

    def _call_back(self, engine: Engine, step: Step, new: Tensor) -> Tensor:
        if self._callback is None:
            return new
        given = self._callback(self._sampler, step.index, engine.stepper.timesteps[step.index], {"latents": new})
        replaced: Tensor = (given or {}).get("latents", new)
        return replaced

    def _engine(self, seed: int, communicator: Communicator) -> Engine:
        exchange = Exchange.among(communicator, self._spread.speeds)
        return self._sampler.engine(self._config, seed, exchange, watched=self._callback is not None)

    def _decode(self, latents: Tensor) -> list[Any]:
        backbone, config = self._sampler.backbone, self._config
        exchange = Exchange.among(self._communicator, self._spread.speeds)
        with self._communicator.trace.span("compute", "decode"):
            pictures = [backbone.decode(one[None], exchange)[..., : config.height, : config.width] for one in latents]
        if self._output_type == "pt":
            return [picture[0] for picture in pictures]
        return [backbone.to_pil(picture)[0] for picture in pictures]

    def _device(self) -> Any:
        return getattr(self._sampler.backbone, "device", None)
