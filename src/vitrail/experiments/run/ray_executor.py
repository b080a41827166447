"""Executor on a Ray cluster: each actor loads the model once and returns pictures as bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.atomic import replacing
from vitrail.errors import ConfigError
from vitrail.experiments.run.store import Outcome
from vitrail.experiments.spec.cells import Cell

if TYPE_CHECKING:
    from vitrail.experiments.run.execution import Done


class Actor:
    """Actor on the cluster: a worker that returns the outcome and the bytes of the picture.

    Args:
        cell: Any cell, for the model's name and options.
        device: A torch device; None for the default.
    """

    def __init__(self, cell: Cell, device: str | None):
        from vitrail.experiments.run.cell_run import Worker

        self._worker = Worker.load(cell.config(), device)

    def sample(self, cell: Cell) -> tuple[Outcome, bytes]:
        """Sample a cell in a temporary folder, so that no file system is shared; the bytes are empty after an error."""
        with tempfile.TemporaryDirectory() as folder:
            outcome = self._worker.sample(cell, Path(folder))
            assert outcome is not None  # nobody interrupts an actor
            file = Path(folder) / cell.picture
            return outcome, file.read_bytes() if outcome.error is None else b""


@frozen(kw_only=True)
class OnRay:
    """Executor on actors of a Ray cluster: that of ``RAY_ADDRESS``, or one started on this machine.

    Attributes:
        workers: Number of actors; 0 is one per accelerator of the cluster, or one per two processors without any.
        device: Torch device of each actor; None for the default.
    """

    workers: int = field(default=0, validator=v.ge(0))
    device: str | None = None

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """Yield each cell with its outcome as they finish.

        A cell whose actor died has an outcome with an error, and a new actor replaces the dead one.

        Args:
            cells: The cells to sample.
            folder: The experiment's folder.
            on_share: Not called, since the actors do not report steps.

        Raises:
            ConfigError: If Ray is not installed.
            OutputError: If a picture cannot be written.
        """
        ray = import_ray()
        started = not ray.is_initialized()
        if started:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        try:
            yield from self._outcomes(ray, list(cells), folder)
        finally:
            if started:
                ray.shutdown()

    def _outcomes(self, ray: Any, cells: list[Cell], folder: Path) -> Iterator[Done]:
        resources = ray.cluster_resources()
        accelerators = int(resources.get("GPU", 0))
        count = self.workers or accelerators or max(1, int(resources.get("CPU", 1)) // 2)
        remote = ray.remote(num_gpus=share_of(accelerators, count), num_cpus=1)(Actor)
        waiting, busy = iter(cells), {}

        def give(actor: Any) -> None:
            cell = next(waiting, None)
            if cell is not None:
                actor = actor or remote.remote(cell, self.device)
                busy[actor.sample.remote(cell)] = (actor, cell)

        for _ in range(min(count, len(cells))):
            give(None)
        while busy:
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            actor, cell = busy.pop(ready)
            try:
                outcome, picture = ray.get(ready)
            except ray.exceptions.RayError as error:
                outcome, picture, actor = Outcome(cell=cell.address, error=_reason(error)), b"", None
            if picture:
                _write(folder / cell.picture, picture)
            give(actor)
            yield cell, outcome


def share_of(accelerators: int, actors: int) -> float:
    """Return the share of an accelerator per actor, at most 1; Ray assigns whole accelerators or fractions of one."""
    return min(1.0, accelerators / actors)


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: If Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError('--executor ray needs Ray: pip install "vitrail[ray]"') from error
    return ray


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)


def _reason(error: Exception) -> str:
    """Message of a Ray error: its last line, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"an actor of the cluster failed: {lines[-1] if lines else type(error).__name__}"
