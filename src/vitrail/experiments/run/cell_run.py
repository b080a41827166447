"""Sampling of one cell: from its specification to its picture and outcome."""

from __future__ import annotations

import functools
import multiprocessing
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, fields_dict, has

from vitrail.core.config.loader import loader_of
from vitrail.core.method.composition import Composition
from vitrail.core.method.members import OptionalBackend, has_own
from vitrail.errors import OutputError, VitrailError
from vitrail.experiments.run.origin import commit_of_vitrail, machine
from vitrail.experiments.run.peak_memory import Peak
from vitrail.experiments.run.store import Outcome
from vitrail.experiments.spec.cells import Cell, Model
from vitrail.sampling.call_options import Spread
from vitrail.sampling.discovery import registry
from vitrail.sampling.recipe import current_versions, save_picture
from vitrail.sampling.run_plugins import load_plugins

if TYPE_CHECKING:
    from vitrail.comm.communicator import RankCommunicator
    from vitrail.core.config.run_config import RunConfig
    from vitrail.core.method.backbone import Backbone
    from vitrail.sampling.call_options import Callback
    from vitrail.sampling.result import Result
    from vitrail.sampling.sampler import Sampler

PRELOADED = (  # what the fork server imports once for the rank processes of all cells
    "torch.distributed",
    "vitrail.backbones.pipeline_backbone",
    "vitrail.experiments.run.cell_run",
    "vitrail.sampling.sampler",
)


@define(eq=False)
class Worker:
    """Samples cells of one model, with one sampler per method.

    Attributes:
        backbone: The loaded model.
        device: The requested torch device; None for the default.
    """

    backbone: Backbone
    device: str | None = None
    _commit: str = field(factory=lambda: commit_of_vitrail() or "", init=False)
    _samplers: dict[str, Sampler] = field(factory=dict, init=False)
    _current: Sampler | None = field(default=None, init=False)

    @classmethod
    def load(cls, run: RunConfig, device: str | None = None) -> Worker:
        """Load the model of a run.

        Args:
            run: Names the model and its options.
            device: A torch device; the accelerator if there is one, else the CPU, if None.

        Raises:
            VitrailError: If the model cannot be found or loaded.
        """
        from vitrail.backbones.loading.source import ModelOptions, find_model
        from vitrail.backbones.pipeline_backbone import quiet_libraries

        quiet_libraries()
        return cls(find_model(run.model, registry(), ModelOptions.of(run)).load(device), device)

    def model(self) -> Model:
        """Return the model's training size, default run options and fingerprint."""
        side = self.backbone.native_size * self.backbone.vae_scale_factor
        fingerprint = self.backbone.fingerprint()
        self.backbone.release()
        return Model(native_size=side, defaults=self.backbone.defaults, fingerprint=fingerprint)

    def sampler(self, cell: Cell) -> Sampler:
        """Return the sampler of a cell's method and plugins, shared by all cells with the same ones.

        Raises:
            VitrailError: If the method does not fit the model, or a plugin cannot be loaded.
        """
        from vitrail.backbones.loading.source import ModelOptions
        from vitrail.sampling.sampler import Sampler

        key = repr((cell.composition, cell.plugins))
        if key not in self._samplers:
            composition = composition_of(cell)
            options, model = ModelOptions.of(cell.config()), cell.run["model"]
            self._samplers[key] = Sampler(
                self.backbone, composition, model=model, options=options, plugins=load_plugins(cell.plugins)
            )
        return self._samplers[key]

    def work(self, cell: Cell) -> float:
        """Estimate a cell's cost, in network evaluations at the training size.

        Raises:
            VitrailError: If the method does not fit the model or the size.
        """
        if cell.kind == "heatmap":
            return 2.0 * float(cell.run["num_inference_steps"])
        plan = self.sampler(cell).plan(cell.config())
        self.backbone.release()
        return max(1.0, sum(stage.work * stage.num_steps for stage in plan.stages))

    def interrupt(self) -> bool:
        """Stop the running cell at its next step.

        Returns:
            False if no cell is running, or one on several ranks or a heat map, which run to their end.
        """
        if self._current is None:
            return False
        self._current.interrupt()
        return True

    def sample(self, cell: Cell, folder: Path, on_step: Callable[[], None] = lambda: None) -> Outcome | None:
        """Sample a cell and save its picture; errors are recorded in the outcome.

        Args:
            cell: The cell to sample.
            folder: The experiment's folder.
            on_step: Called after every step of the sampler.

        Returns:
            The outcome; None if it was interrupted, and nothing is saved then.

        Raises:
            OutputError: If the picture cannot be written, which would fail for every other cell as well.
        """
        stamp: dict[str, Any] = {
            "cell": cell.address,
            "versions": current_versions(),
            "machine": machine(self.backbone.device),
            "commit": self._commit,
        }
        try:
            found = self._look(cell, folder) if cell.kind == "heatmap" else self._sample(cell, folder, on_step)
        except OutputError:
            raise
        except VitrailError as error:
            return Outcome(**stamp, error=str(error), finished=_now())
        except Exception as error:  # a bug in one row must not stop the others
            return Outcome(**stamp, error=f"{type(error).__name__}: {error}", finished=_now())
        return None if found is None else evolve(found, **stamp, finished=_now())

    def _sample(self, cell: Cell, folder: Path, on_step: Callable[[], None]) -> Outcome | None:
        config, sampler = cell.config(), self.sampler(cell)
        plan = sampler.plan(config)
        with Peak.watch(self.backbone.device) as peak:
            result = self._alone(sampler, config, on_step) if cell.ranks == 1 else self._on_ranks(cell)
        if result.report.interrupted:
            return None
        path = folder / cell.picture
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(result.images[0], result.recipes[0], path)
        report, rows, columns = result.report, *edges(sampler, config)
        calls = calls_of(result)
        return Outcome(
            cell=cell.address,
            seconds=report.engine_s + report.decode_s,
            engine_s=report.engine_s,
            decode_s=report.decode_s,
            model_calls=sum(calls),
            critical_calls=max(calls),
            predicted_calls=plan.model_calls,
            vae_decodes=report.vae_decodes,
            vae_encodes=report.vae_encodes,
            peak_bytes=peak.bytes if cell.ranks == 1 else None,
            native_size=self.backbone.native_size * self.backbone.vae_scale_factor,
            rows=rows,
            columns=columns,
        )

    def _alone(self, sampler: Sampler, config: RunConfig, on_step: Callable[[], None]) -> Result:
        """Sample in this process, where ``interrupt`` stops the run."""
        self._current = sampler
        try:
            return sampler.run(config, _calling(on_step))
        finally:
            self._current = None

    def _on_ranks(self, cell: Cell) -> Result:
        """Sample on several ranks and return rank 0's result; threads share the model, processes load their own."""
        backend = registry().get("comm", cell.comm)()
        backend = _started_once(backend)
        program: Callable[[RankCommunicator], Result] = functools.partial(_process, cell, self.device)
        if not has_own(backend, OptionalBackend.join):
            program = functools.partial(_thread, self.sampler(cell), cell.config())
        results = backend.run(cell.ranks, program, cell.address)
        found: Result = results[0]
        return found

    def _look(self, cell: Cell, folder: Path) -> Outcome:
        """Draw the heat map of a mask source."""
        from vitrail.sampling.mask_recorder import read_shares, record_figure

        path = folder / cell.picture
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        record_figure(self.sampler(cell), cell.config(), read_shares(cell.options["at"]), path)
        return Outcome(cell=cell.address, seconds=time.perf_counter() - begin)


def composition_of(cell: Cell) -> Composition:
    """Build a cell's method from its tables.

    Raises:
        ConfigError: If the tables do not fit the registered strategies.
    """
    return loader_of(registry()).structure(cell.composition, Composition, f"row {cell.row!r}")


def edges(sampler: Sampler, config: RunConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pixel rows and columns where contiguous views of the last step begin or end.

    The picture's own edges are left out; strided views have none.
    """
    plan = sampler.run_plan(config, config.seed)
    cell, sides, wanted = sampler.backbone.vae_scale_factor, plan.canvas.picture, (config.height, config.width)
    found: tuple[set[int], set[int]] = (set(), set())
    for patches in plan.patches(plan.steps()[-1]):
        for view in patches.views:
            for axis, span in enumerate((view.vertical, view.horizontal)):
                if span.step == 1:
                    last = span.start + span.count
                    ends = (span.start, last if span.length is None else last % span.length)
                    inner = [cell * end for end in ends if 0 < cell * end < sides[axis]]
                    found[axis].update(round(end * wanted[axis] / sides[axis]) for end in inner)
    sampler.backbone.release()
    return tuple(sorted(found[0])), tuple(sorted(found[1]))


def calls_of(result: Result) -> list[int]:
    """Return the number of rows that each rank's network evaluated."""
    if len(result.traces) <= 1:
        return [result.report.model_calls]
    return [sum(span.args.get("rows", 0) for span in trace.spans) for trace in result.traces]


def _started_once(backend: Any) -> Any:
    """Return the backend; if it starts processes, they are forked from a server with the common modules imported."""
    if not has(type(backend)) or "start" not in fields_dict(type(backend)):
        return backend
    pipelines = [name for name in sys.modules if name.rpartition(".")[2].startswith("pipeline_")]
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED, *pipelines])
    return evolve(backend, start="forkserver")


def _process(cell: Cell, device: str | None, communicator: RankCommunicator) -> Result:
    """Run one rank in a process that loads the model itself."""
    return _thread(Worker.load(cell.config(), device).sampler(cell), cell.config(), communicator)


def _thread(sampler: Sampler, config: RunConfig, communicator: RankCommunicator) -> Result:
    """Run one rank with a loaded model."""
    return sampler.again().run(config, spread=Spread(communicator=communicator))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _calling(on_step: Callable[[], None]) -> Callback:
    """Wrap ``on_step`` as a callback in diffusers' form that changes no tensors."""

    def call_back(*_: object) -> dict[str, Any] | None:
        on_step()
        return None

    return call_back
