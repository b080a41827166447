"""Executors of an experiment's cells: this process, or actors of a Ray cluster (``ray_executor``); shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from vitrail.errors import ConfigError, shortened
from vitrail.experiments.run.cell_run import Worker
from vitrail.experiments.run.store import Outcome
from vitrail.experiments.spec.cells import Cell

if TYPE_CHECKING:
    pass

Done = tuple[Cell, Outcome]
DIGITS = 6  # maximum number of digits of a shard's numbers


class Executor(Protocol):
    """Samples cells, in any order."""

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """Yield each cell with its outcome, once its picture is in the folder.

        Args:
            cells: The cells to sample.
            folder: The experiment's folder.
            on_share: Called with a cell and the finished share of it in [0, 1], where that is known.
        """


@frozen(eq=False)
class Here:
    """Executor in this process, one cell after another.

    Attributes:
        worker: Holds the loaded model.
    """

    worker: Worker

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """Yield each cell with its outcome, until the cells are exhausted or the worker is interrupted.

        Args:
            cells: The cells to sample.
            folder: The experiment's folder.
            on_share: Called with a cell and the finished share of it in [0, 1] after every step.

        Raises:
            OutputError: If a picture cannot be written.
        """
        for cell in cells:
            done, steps = 0, max(1, int(cell.run["num_inference_steps"]))

            def step(cell: Cell = cell, steps: int = steps) -> None:
                nonlocal done
                done += 1
                on_share(cell, min(1.0, done / steps))

            outcome = self.worker.sample(cell, folder, step)
            if outcome is None:
                return
            yield cell, outcome


@frozen
class Shard:
    """A process's share of the cells, determined by their addresses, so that shards need no communication.

    Attributes:
        number: Index of the shard, from 0.
        count: Number of shards.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """Parse ``i/n``, as on the command line.

        Raises:
            ConfigError: If the text has another form, or i is not below n.
        """
        number, slash, count = text.partition("/")
        is_pair = slash and all(each.isdecimal() and len(each) <= DIGITS for each in (number, count))
        if not is_pair or int(number) >= int(count):
            raise ConfigError(f"--shard {shortened(text)!r}: write i/n with i from 0 to n - 1, e.g. 0/2 and 1/2")
        return cls(int(number), int(count))

    def has(self, cell: Cell) -> bool:
        """Return whether a cell belongs to this shard."""
        return int(cell.address, 16) % self.count == self.number

    def __str__(self) -> str:
        return f"{self.number}of{self.count}"
