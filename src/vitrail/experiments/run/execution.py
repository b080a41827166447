"""Who samples the cells of a run: this process, or the actors of a Ray cluster."""

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
DIGITS = 6  # of the numbers of a shard


class Executor(Protocol):
    """Samples cells in any order."""

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """Each cell with what became of it, once its picture is in the folder.

        Args:
            cells: What to do.
            folder: The experiment's.
            on_share: Told what share of a cell is done, where that is known.
        """


@frozen(eq=False)
class Here:
    """In this process, one cell after another.

    Attributes:
        worker: With the model.
    """

    worker: Worker

    def outcomes(self, cells: Iterable[Cell], folder: Path, on_share: Callable[[Cell, float], None]) -> Iterator[Done]:
        """Until all are done or somebody interrupts the worker."""
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
    """A process's share of the cells: those whose address falls to it, so that shards need not know each other.

    Attributes:
        number: Counted from 0.
        count: Of all shards.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """``i/n``, as on the command line.

        Raises:
            ConfigError: If it is none.
        """
        number, slash, count = text.partition("/")
        is_pair = slash and all(each.isdecimal() and len(each) <= DIGITS for each in (number, count))
        if not is_pair or int(number) >= int(count):
            raise ConfigError(f"--shard {shortened(text)!r}: write i/n with i from 0 to n - 1, e.g. 0/2 and 1/2")
        return cls(int(number), int(count))

    def has(self, cell: Cell) -> bool:
        """Whether a cell is of this share."""
        return int(cell.address, 16) % self.count == self.number

    def __str__(self) -> str:
        return f"{self.number}of{self.count}"
