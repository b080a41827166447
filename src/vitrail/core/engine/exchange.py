"""Exchange of tensors between the ranks of a run, and the vote on stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from attrs import field, frozen

from vitrail.comm.partition import assign
from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Channel, Communicator
    from vitrail.core.engine.speed_meter import SpeedMeter
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step

K = TypeVar("K")
ExchangeKind = Literal["barrier", "dataflow"]  # what ranks wait for at a step: all views, or those that theirs overlap
Speeds = Sequence[float] | Literal["auto"]  # relative speeds of ranks: given, () for equal ones, or to be measured
MEASURED: Literal["auto"] = "auto"
TOO_EARLY = "a dataflow is planned for all steps before they begin, when no speed is measured yet"


@frozen(eq=False)
class Exchange:
    """The ranks of a run.

    Attributes:
        communicator: This rank's communicator.
        given: Relative speeds of the ranks, unless they are measured.
        workers: Micro-batches or strips that this rank may compute concurrently; does not affect results.
        kind: How stages are exchanged that can be done without a barrier; does not affect results.
        meter: Measures the speeds of the ranks; None if they are given.
    """

    communicator: Communicator
    given: tuple[float, ...] = field(converter=as_tuple)
    workers: int = 1
    kind: ExchangeKind = "barrier"
    meter: SpeedMeter | None = None

    @classmethod
    def among(
        cls,
        communicator: Communicator,
        speeds: Sequence[float] = (),
        workers: int = 1,
        kind: ExchangeKind = "barrier",
        meter: SpeedMeter | None = None,
    ) -> Exchange:
        """Return the exchange between the ranks of a communicator.

        Args:
            communicator: This rank's communicator.
            speeds: Relative speeds of the ranks; equal if not given.
            workers: Micro-batches or strips that this rank may compute concurrently.
            kind: How stages are exchanged that can be done without a barrier.
            meter: Measures the speeds instead, if they are not given.
        """
        return cls(communicator, speeds or [1.0] * communicator.world_size, workers, kind, meter)

    @property
    def speeds(self) -> tuple[float, ...]:
        """Relative speeds of the ranks, by which work is divided now; equal on all ranks."""
        return self.given if self.meter is None else self.meter.agreed

    @property
    def is_alone(self) -> bool:
        """Whether this is the only rank."""
        return self.communicator.world_size == 1

    @property
    def flows(self) -> bool:
        """Whether stages that can be done without a barrier are; one rank has nobody to wait for."""
        return self.kind == "dataflow" and not self.is_alone

    def asks_for_speeds(self, step: Step) -> bool:
        """Whether ranks exchange what they measured before a step in any case; equal on all ranks."""
        return self.meter is not None and self.meter.is_due(step)

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.communicator.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.communicator.world_size

    def gather(self, mine: Mapping[K, Tensor], like: Mapping[K, Tensor], owner: Mapping[K, int]) -> Mapping[K, Tensor]:
        """Gather every rank's tensors on every rank.

        Args:
            mine: This rank's tensors by key.
            like: Shape and dtype of every tensor, as tensors on the ``meta`` device.
            owner: Rank that has each tensor.

        Returns:
            All tensors by key.
        """
        import torch

        if self.is_alone:
            return mine
        out = {
            key: torch.empty(each.shape, dtype=each.dtype, device=self.communicator.device)
            for key, each in like.items()
        }
        self.communicator.all_gather_into(out, mine, owner)
        return out


def whole_views(
    batches: Sequence[MicroBatch], speeds: Sequence[float], branches: int, first_view: int
) -> tuple[int, ...]:
    """Assign micro-batches to ranks so that all rows of a view are on one rank.

    Args:
        batches: In canonical order, of ``row_batch`` rows each.
        speeds: Relative speeds of the ranks.
        branches: Rows of a view.
        first_view: View whose rows are computed first.

    Returns:
        The rank of each micro-batch.
    """
    size = len(batches[0].views)
    together = math.lcm(size, branches) // size  # micro-batches that together hold whole views
    groups = [range(begin, min(begin + together, len(batches))) for begin in range(0, len(batches), together)]
    costs = [float(sum(len(batches[unit].views) for unit in group)) for group in groups]
    owners = assign(costs, speeds, first_view * branches // size // together)
    return tuple(owner for owner, group in zip(owners, groups, strict=True) for _ in group)


class StopVote:
    """Vote on stopping: rank 0 is asked, and all ranks act on its answer of the step before."""

    def __init__(self, exchange: Exchange):
        self._communicator, self._count = exchange.communicator, 0
        self._channel: Channel | None = None

    def decide(self, wanted: bool) -> bool:
        """Whether to stop before this step, equal on all ranks; ``wanted`` counts on rank 0 only."""
        import torch

        if self._communicator.world_size == 1:
            return wanted
        if self._channel is None:
            self._channel = self._communicator.channel("stop", src=0, shape=(1,), dtype=torch.uint8)
        self._channel.publish(
            self._count,
            torch.tensor([wanted], dtype=torch.uint8, device=self._communicator.device)
            if self._communicator.rank == 0
            else None,
        )
        self._count += 1
        return self._count > 1 and bool(self._channel.fetch(self._count - 2))
