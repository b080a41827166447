"""Cells on the actors of a Ray cluster; each loads the model once and sends pictures back as bytes."""

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
    """What runs on the cluster: a worker that answers with the outcome and the bytes of the picture."""

    def __init__(self, cell: Cell, device: str | None):
        from vitrail.experiments.run.cell_run import Worker

        self._worker = Worker.load(cell.config(), device)

    def sample(self, cell: Cell) -> tuple[Outcome, bytes]:
        """Sample in a folder of its own, which need not be shared with whoever asked."""
        with tempfile.TemporaryDirectory() as folder:
            outcome = self._worker.sample(cell, Path(folder))
            assert outcome is not None  # nobody interrupts an actor
            file = Path(folder) / cell.picture
            return outcome, file.read_bytes() if outcome.error is None else b""


@frozen(kw_only=True)
class OnRay:
    """Actors of a Ray cluster: the one of ``RAY_ADDRESS``, or one that is started on this machine.

    Attributes:
        workers: How many actors; one for each accelerator of the cluster, or one for each two processors, if 0.
        device: Of each actor.
    """

    workers: int = field(default=0, validator=v.ge(0))
    device: str | None = None

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """As they come; a cell whose actor died is an outcome with an error, and a new actor takes its place."""
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
    """Of an accelerator, what each actor asks for; Ray gives whole ones or parts of one, and an actor needs no more."""
    return min(1.0, accelerators / actors)


def import_ray() -> Any:
    """The library.

    Raises:
        ConfigError: If it is not installed.
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
    """The last line of what Ray says, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"an actor of the cluster failed: {lines[-1] if lines else type(error).__name__}"
