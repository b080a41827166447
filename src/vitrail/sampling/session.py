"""One call of a sampler, from a config to pictures, on one rank or many."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

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
from vitrail.core.engine.speed_meter import SpeedMeter
from vitrail.errors import CommError, ConfigError, Interrupted, VitrailError
from vitrail.sampling.call_options import Call
from vitrail.sampling.call_pictures import in_sequence
from vitrail.sampling.callbacks import wanted_inputs
from vitrail.sampling.called_steps import CalledSteps
from vitrail.sampling.differentiation import without_graph
from vitrail.sampling.discovery import registered_name
from vitrail.sampling.finishing import finished_picture
from vitrail.sampling.input_digests import given_digests
from vitrail.sampling.kept_latents import latents_kept
from vitrail.sampling.output_types import as_output
from vitrail.sampling.recipe import Recipe, digest_of
from vitrail.sampling.region_masks import mask_digests
from vitrail.sampling.result import Report, Result
from vitrail.sampling.run_plugins import wrapping
from vitrail.sampling.start_latents import StartLatents

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.comm.trace.recording import Recorder
    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.memory_backoff import MemoryBackoff
    from vitrail.core.engine.plan import RunPlan
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
        self._beginning: StartLatents  # once the inputs are read
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
        world_size, speeds = self._communicator.world_size, call.spread.speeds
        self._given_speeds = () if isinstance(speeds, str) else speeds
        is_measured = isinstance(speeds, str) and world_size > 1
        self._meter = SpeedMeter.among(world_size) if is_measured else None  # one for all pictures, so that it is kept

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
        config, extras = self._config, self._call.extras
        self._beginning = StartLatents.read(config.image, extras, self._builder.backbone)
        masks = mask_digests(config.regions, self._builder.masks)
        self._given = given_digests(extras, self._beginning.from_file) | masks
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
        """Return what every rank did because memory ran out, on every rank, and the speeds on which all agreed."""
        communicator, own = self._communicator, list(self._backoff.notes if self._backoff else ())
        if communicator.world_size == 1:
            return own
        every = [communicator.broadcast_object(own, rank) for rank in range(communicator.world_size)]
        shortages = [f"rank {rank}: {note}" for rank, notes in enumerate(every) for note in notes]
        return [*shortages, *(self._meter.notes if self._meter else ())]

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
            "plan": f"{self._communicator.world_size} ranks of speeds "
            f"{'as measured' if self._meter else list(self._given_speeds)}, "
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
        self._beginning.check(plan)
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
        start = self._beginning.latents(loop.engine)
        steps = CalledSteps.begin(self._sampler, self._call, builder, plan, self._wanted, communicator, self._given)
        calls = self._call.callback is not None

        def stop() -> bool:
            return self._call.stop() or bool(steps.caller.interrupt)

        with self._builder.backbone.adapters_kept() if calls else nullcontext():
            done = loop.run(start, stop, steps.after, checkpoints, steps.guidance if calls else None)
        if done.steps < num_steps:
            self._stopped = True
            done.latents = loop.shown(done)
            return done
        plan.hooks.run_end(done.latents)
        if checkpoints is not None:
            checkpoints.finish(done.latents)
        return done

    def _planned(self, number: int) -> RunPlan:
        """Return the plan of the next picture, made on first use."""
        if self._plan is None:
            builder = self._builder_of(number)
            self._plan = builder.plan(builder.config.seed, self._call.extras)
            self._enlarges = self._plan.enlarged is not None
        return self._plan

    def _engine(self, builder: Builder, plan: RunPlan, communicator: Communicator) -> Engine:
        kind = self._spread.exchange
        exchange = Exchange.among(communicator, self._given_speeds, self._workers, kind, self._meter)
        engine = builder.engine(plan, exchange, self._call.callback is not None, self._backoff)
        self._backoff = engine.forwards.backoff
        return engine

    def _decode(self, latents: Tensor) -> list[Tensor]:
        exchange = Exchange.among(self._communicator, self._given_speeds, self._workers)
        finish, builders = self._builder.composition.finish, map(self._builder_of, range(len(latents)))
        return [
            finished_picture(one[None], finish, builder.config, builder.backbone, exchange)
            for one, builder in zip(latents, builders, strict=True)
        ]

    def _device(self) -> torch.device:
        return self._builder.backbone.device
