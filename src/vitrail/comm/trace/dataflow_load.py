"""Micro-batches of a stage of overlapping windows, and the order in which ranks do them without a barrier."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from vitrail.comm.dataflow import StepUnit, dataflow_order


@frozen
class DataflowLoad:
    """The micro-batches of some steps, the same at each, and their order.

    Attributes:
        rows: Rows of every micro-batch.
        needs: Of every micro-batch, those of the step before that it needs.
        order: All micro-batches of all steps, with their ranks.
    """

    rows: tuple[int, ...]
    needs: tuple[tuple[int, ...], ...]
    order: tuple[StepUnit, ...] = field(repr=False)

    @classmethod
    def of_windows(
        cls, grid: tuple[int, int], branches: int, row_batch: int, steps: int, speeds: Sequence[float]
    ) -> DataflowLoad:
        """Return the load of windows of half overlap, each of which overlaps its eight neighbours.

        Args:
            grid: Number of windows down and across.
            branches: Rows of a window.
            row_batch: Largest number of rows of a micro-batch.
            steps: Number of steps.
            speeds: Relative speeds of the ranks.
        """
        down, across = grid
        total = down * across * branches
        cuts = [range(begin, min(begin + row_batch, total)) for begin in range(0, total, row_batch)]
        places = [{divmod(row // branches, across) for row in cut} for cut in cuts]

        def touch(own: set[tuple[int, int]], other: set[tuple[int, int]]) -> bool:
            return any(abs(y - v) <= 1 and abs(x - u) <= 1 for y, x in own for v, u in other)

        needs = tuple(tuple(n for n, other in enumerate(places) if touch(own, other)) for own in places)
        rows = tuple(len(cut) for cut in cuts)
        order = dataflow_order([[float(count) for count in rows]] * steps, [needs] * steps, speeds)
        return cls(rows, needs, order)
