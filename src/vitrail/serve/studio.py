"""One loaded model, one picture at a time: plans, progress with previews, stopping and going on."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from vitrail.backbones.loading.source import ModelOptions
from vitrail.backbones.memory.forecast import forecast
from vitrail.core.config.log import logger
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError, VitrailError, first_line
from vitrail.sampling.call_options import Spread
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.methods import load_method, summary
from vitrail.sampling.recipe import save_picture
from vitrail.sampling.result import Plan
from vitrail.sampling.sampler import Sampler
from vitrail.serve.pyramid import NotThereError
from vitrail.serve.served_picture import ServedPicture
from vitrail.serve.step_watch import LeftError, StepWatch

if TYPE_CHECKING:
    from vitrail.core.method.backbone import Backbone

MOST_KEPT, MOST_KEPT_PIXELS = 24, 2**27  # pictures in memory; the oldest go first, and the latest two stay
PIXEL_BYTES = 32  # of a picture while it is decoded, kept and cut into tiles
NEVER = 10**9  # steps between two checkpoints: one is written when the run is stopped


class BusyError(VitrailError, RuntimeError):
    """A picture is in work, and there is one at a time."""


@frozen
class Foreseen:
    """What a run would do.

    Attributes:
        sampler: With the run's method.
        plan: The plan.
        rows: Rows per forward.
        need_bytes: Memory of a forward beside the weights; None if unknown.
        free_bytes: Memory that is free; None if unknown.
    """

    sampler: Sampler
    plan: Plan
    rows: int
    need_bytes: int | None
    free_bytes: int | None

    @property
    def works(self) -> list[float]:
        """Work of every step, in units of a view of the training size."""
        return [stage.work for stage in self.plan.stages for _ in range(stage.num_steps)]


class Studio:
    """A model that stays loaded, and the pictures that were made with it.

    Everything may be called from any thread. Sampling runs in a thread of its own.
    """

    def __init__(self, backbone: Backbone, model: str, options: ModelOptions | None = None):
        """Prepare to work with a model.

        Args:
            backbone: The loaded model.
            model: Its name, as it was given to the command.
            options: How it was loaded.
        """
        self.backbone, self.model, self._options = backbone, model, options or ModelOptions()
        self.methods = [_method(name, backbone, model) for name in registry().names("methods")]
        self._folder = Path(tempfile.mkdtemp(prefix="vitrail-serve-"))  # for this user alone
        self._lock = threading.RLock()  # of what follows, held for moments
        self._planning = threading.RLock()  # while a run is planned or begun; taken before the other
        self._closing = threading.Event()
        self._works: list[ServedPicture] = []
        self._sampler: Sampler | None = None  # of the picture in work
        self._thread: threading.Thread | None = None
        self._rate: float | None = None  # seconds per unit of work, of the latest run
        self._count = 0

    def foresee(self, config: RunConfig) -> Foreseen:
        """Plan a run, without any model call.

        Raises:
            BusyError: While a picture is in work, which shares the networks.
            VitrailError: If the method does not fit the model or the size, or the memory is not there.
        """
        with self._planning:
            self._refuse_busy()
            config = self._complete(config)
            fields = {"model": self.model, "options": self._options, "method": config.method}
            sampler = Sampler(self.backbone, load_method(config.method), **fields)  # type: ignore[arg-type]
            run_plan = sampler.run_plan(config, config.seed)
            plan, outlook = Plan.of(run_plan, self.backbone), forecast(run_plan, self.backbone, 1, config.row_batch)
            foreseen = Foreseen(sampler, plan, outlook.rows, outlook.need_bytes, outlook.free_bytes)
        need, free = (foreseen.need_bytes or 0) + config.width * config.height * PIXEL_BYTES, foreseen.free_bytes
        if free is not None and need > free:
            raise ConfigError(
                f"{config.width}x{config.height} by {config.method} needs about {need / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free; choose a smaller size, or a method with windows"
            )
        return foreseen

    def plan_data(self, config: RunConfig) -> dict[str, object]:
        """Return a plan as plain data for the page; raises as ``foresee`` does."""
        foreseen = self.foresee(config)
        plan, work = foreseen.plan, sum(foreseen.works)
        stages = [
            {"size": stage.size, "steps": stage.num_steps, "views": stage.num_views, "strategies": stage.strategies}
            for stage in plan.stages
        ]
        return {
            "size": [config.height, config.width],
            "stages": stages,
            "model_calls": plan.model_calls,
            "rows": foreseen.rows,
            "need_bytes": foreseen.need_bytes,
            "free_bytes": foreseen.free_bytes,
            "seconds": None if self._rate is None else self._rate * work,
        }

    def begin(self, config: RunConfig) -> ServedPicture:
        """Begin a picture; return at once.

        Raises:
            BusyError: While another is in work.
            VitrailError: As ``foresee`` does.
        """
        with self._planning:
            foreseen = self.foresee(config)
            with self._lock:
                self._count += 1
                number, steps = self._count, sum(stage.num_steps for stage in foreseen.plan.stages)
                file, checkpoint = (self._folder / f"{number}.{end}" for end in ("png", "checkpoint"))
                work = ServedPicture(number, self._complete(config), file, checkpoint, steps)
                self._works.append(work)
                self._forget()
                self._start(work, foreseen)
            return work

    def go_on(self, number: int) -> ServedPicture:
        """Go on with a picture that was stopped, or that failed with its steps kept; return at once.

        Raises:
            BusyError: While another is in work.
            NotThereError: If there is no such picture.
            ConfigError: If it was neither, or was not kept.
        """
        with self._planning:
            work = self.work(number)
            self._refuse_busy()
            if work.status not in ("stopped", "failed"):
                raise ConfigError(f"picture {number} is {work.status}, so there is nothing to go on with")
            if not work.can_go_on:
                raise ConfigError(
                    f"picture {number} was not kept where it stopped: the network remembers earlier forwards, or the "
                    "file could not be written; make it anew with its settings"
                )
            foreseen = self.foresee(work.config)
            with self._lock:
                self._start(work, foreseen)
            return work

    def stop(self, number: int) -> ServedPicture:
        """Ask a picture in work to stop at its next step; without effect if it has ended.

        Raises:
            NotThereError: If there is no such picture.
        """
        with self._lock:
            work = self.work(number)
            if work.is_running and self._sampler is not None:
                work.status = "stopping"
                self._sampler.interrupt()
            return work

    def work(self, number: int) -> ServedPicture:
        """Return a picture by its number.

        Raises:
            NotThereError: If there is none.
        """
        with self._lock:
            found = [work for work in self._works if work.number == number]
        if not found:
            raise NotThereError(f"there is no picture {number}, or no longer: the page keeps the latest ones")
        return found[0]

    def state(self) -> dict[str, object]:
        """Return all pictures as plain data for the page, the latest first."""
        with self._lock:
            busy = self._busy()
            pictures = [work.as_data() for work in reversed(self._works)]
        return {"busy": None if busy is None else busy.number, "pictures": pictures}

    @property
    def is_busy(self) -> bool:
        """Whether a picture is in work."""
        with self._lock:
            return self._busy() is not None

    def close(self) -> None:
        """Leave the picture in work after its step, without decoding it; wait for that, and remove all files."""
        self._closing.set()
        with self._lock:
            busy, thread = self._busy(), self._thread
            if busy is not None:
                busy.status = "stopping"
        try:
            if thread is not None:
                thread.join()
        finally:  # also if a signal ends the waiting
            self.remove_files()

    def remove_files(self) -> None:
        """Remove all files; what is in work cannot be saved any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self, config: RunConfig) -> RunConfig:
        return attrs.evolve(config, model=self.model, **self._options.as_fields())

    def _busy(self) -> ServedPicture | None:
        return next((work for work in self._works if work.is_running), None)

    def _refuse_busy(self) -> None:
        with self._lock:
            busy = self._busy()
        if busy is not None:
            raise BusyError(
                f"the model is busy with “{busy.config.prompt}”, step {busy.step} of {busy.steps}; "
                "wait for it, or stop it"
            )

    def _forget(self) -> None:
        """Drop the oldest pictures beyond what is kept."""
        while len(self._works) > 2:
            pixels = sum(
                work.shown.image.width * work.shown.image.height for work in self._works if work.shown is not None
            )
            if len(self._works) <= MOST_KEPT and pixels <= MOST_KEPT_PIXELS:
                return
            oldest = self._works.pop(0)
            oldest.file.unlink(missing_ok=True)
            oldest.checkpoint.unlink(missing_ok=True)

    def _start(self, work: ServedPicture, foreseen: Foreseen) -> None:
        watch = StepWatch(work, foreseen.works, self._closing)
        self._sampler = foreseen.sampler.again([("serve", watch)])
        work.status, work.left_s, work.reason = "running", None, ""
        self._thread = threading.Thread(target=self._sample, args=(work, self._sampler, watch), daemon=True)
        self._thread.start()

    def _sample(self, work: ServedPicture, sampler: Sampler, watch: StepWatch) -> None:
        """Sample a picture; runs in a thread of its own, and raises nothing."""
        begun, reason, stopped = time.monotonic(), "", False
        keeps = self.backbone.remembers() is None  # a network that remembers cannot go on from a file
        spread = Spread(checkpoint=work.checkpoint if keeps else None, checkpoint_every=NEVER)
        try:
            result = sampler.run(work.config, watch, spread=spread, tensor_inputs=())
            stopped = result.report.interrupted
            if watch.steps or not stopped:  # else there is nothing new to show
                work.show(result.images[0], result.recipes[0])
            if not stopped:
                save_picture(result.images[0], result.recipes[0], work.file)
                work.checkpoint.unlink(missing_ok=True)
        except LeftError:
            stopped = True
        except VitrailError as error:
            reason = str(error) or type(error).__name__
        except Exception as error:
            logger().error("serve.failed", error=repr(error), trace=traceback.format_exc())
            reason = f"it failed: {first_line(str(error)) or type(error).__name__}; the terminal says more"
        with self._lock:
            self._rate = watch.rate or self._rate
            work.seconds += time.monotonic() - begun
            work.reason, work.left_s, self._sampler = reason, None, None
            work.status = "failed" if reason else "stopped" if stopped else "done"


def _method(name: str, backbone: Backbone, model: str) -> dict[str, str]:
    """Return a method's name and summary, and why the model cannot serve it; "" if it can."""
    reason = ""
    try:
        method = load_method(name)
        method.check(backbone.offers, f"model {model!r}", registry())
        method.check_files(registered_name)
    except VitrailError as error:
        reason = first_line(str(error))
    return {"name": name, "summary": summary(registry().path("methods", name)), "refused": reason}
