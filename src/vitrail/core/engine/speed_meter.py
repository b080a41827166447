"""Speeds of ranks that are measured as they compute, and on which all ranks agree.

A rank times its own forwards. Its number goes with the comparison of results before a step, so that all ranks have the
numbers of all at the same place of the program, and divide the work by the same speeds without a message of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.core.config.log import logger

if TYPE_CHECKING:
    from vitrail.comm.trace.recording import Recorder
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step

RECENT = 4  # forwards of which the fastest is a rank's speed: one can be held up, but not hastened
ALIKE = 0.9  # share of a speed from which on another counts as the same
PARTS = 20  # of the fastest speed, to which others are rounded
CHANGE = 0.25  # share by which a speed must differ from the agreed one for a new agreement
AGAIN = 8  # steps after which ranks compare at the latest, to see whether speeds have changed
LARGEST = 2**62  # of a number that is sent


@define(eq=False)
class SpeedMeter:
    """What one rank has measured, and the speeds on which the ranks agree.

    Attributes:
        agreed: Relative speeds of the ranks by which work is divided, equal on all ranks; equal ones at first.
        notes: Record of agreements, one line each.
    """

    agreed: tuple[float, ...]
    notes: tuple[str, ...] = ()
    _recent: deque[float] = field(factory=lambda: deque(maxlen=RECENT), init=False)  # latent cells per second
    _is_warm: bool = field(default=False, init=False)
    _measured: int = field(default=0, init=False)  # ranks whose speed was known at the last agreement
    _last: int | None = field(default=None, init=False)  # step before which numbers were last exchanged

    @classmethod
    def among(cls, world_size: int) -> SpeedMeter:
        """Return the meter of one of several ranks."""
        return cls((1.0,) * world_size)

    def tell(self, rows: MicroBatch, seconds: float, workers: int = 1) -> None:
        """Take note of a forward of this rank, from any thread.

        The first one, which warms up, does not count, nor one with attention maps, which takes longer than others.

        Args:
            rows: What was computed.
            seconds: Its duration.
            workers: Forwards that this rank computes side by side.
        """
        if self._is_warm and seconds > 0 and not rows.capture:
            cells = rows.model_input[:, 0].numel()
            self._recent.append(workers * cells / seconds)
        self._is_warm = True

    def own(self) -> int:
        """Return this rank's speed in thousandths of a latent cell per second; 0 if it is not known."""
        return min(LARGEST, round(1000 * max(self._recent, default=0.0)))

    def is_due(self, step: Step) -> bool:
        """Whether ranks exchange their numbers before a step in any case; equal on all ranks."""
        if self._last is None:
            self._last = step.index
        return step.index - self._last >= (AGAIN if self._measured else 1)

    def agree(self, step: Step, measured: Sequence[int], trace: Recorder) -> None:
        """Take the speeds of the steps from one on from what all ranks measured, if they have changed.

        Args:
            step: The step that comes next.
            measured: What ``own`` gave on every rank; the same numbers on all ranks.
            trace: Receives this rank's speed.
        """
        self._last, known = step.index, sum(map(bool, measured))
        changed = any(abs(now - was) > CHANGE * was for now, was in zip(_relative(measured), self.agreed, strict=True))
        if known <= self._measured and not changed:
            return
        before = self.agreed if self._measured else None
        self.agreed, self._measured = agreed_speeds(measured), max(known, self._measured)
        if self.agreed == before:
            return
        speeds = ", ".join(f"{speed:g}" for speed in self.agreed)
        self.notes += (f"speeds of the ranks from step {step.index + 1} on, as measured: {speeds}",)
        logger().info("speeds.agreed", step=step.index, speeds=list(self.agreed))
        trace.count("speed", self.agreed[trace.rank])


def agreed_speeds(measured: Sequence[int]) -> tuple[float, ...]:
    """Return relative speeds, rounded, and equal where they differ by little; the fastest is 1.

    Args:
        measured: Speed of every rank; one of 0 is not known, and counts as the fastest so that it will be.
    """
    relative = _relative(measured)
    speeds, leader = [1.0] * len(relative), 1.0
    for rank in sorted(range(len(relative)), key=lambda rank: -relative[rank]):
        leader = leader if relative[rank] >= ALIKE * leader else relative[rank]
        speeds[rank] = max(1, round(PARTS * leader)) / PARTS
    return tuple(speeds)


def _relative(measured: Sequence[int]) -> list[float]:
    """Return speeds as shares of the fastest; 1 where one is not known."""
    fastest = max(measured)
    return [speed / fastest if speed else 1.0 for speed in measured]
