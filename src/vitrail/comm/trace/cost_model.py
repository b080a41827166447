"""What a run costs: seconds of forwards, messages, tiles and of what cannot be shared.

A forward of b rows takes ``launch + b * row`` seconds, the row's part in proportion to its latent cells. Attention
grows faster than that, so a model holds near the view size at which it was measured. A message takes ``latency +
bytes / bandwidth``; a rank's link carries one copy for each reader, and links do not share anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import define, field, frozen
from attrs import validators as v

from vitrail.comm.backends.virtual_schedule import Fault
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator

    from vitrail.comm.communicator import RankCommunicator

hookimpl = pluggy.HookimplMarker("vitrail")
NORMAL = NormalDist()
NATIVE_CELLS = 128 * 128  # of a view of SDXL


def _all_positive(_: Any, __: Any, speeds: Sequence[float]) -> None:
    if not all(speed > 0 and math.isfinite(speed) for speed in speeds):
        raise ConfigError(f"relative speeds of ranks must be positive numbers, got {list(speeds)}")


@frozen(kw_only=True)
class CostModel:
    """Seconds of everything that takes time."""

    row_s: float = field(validator=v.ge(0))  # of one row of ``cells`` cells in a forward
    launch_s: float = field(default=0.0, validator=v.ge(0))  # of a forward, however many rows it has
    cells: int = field(default=NATIVE_CELLS, validator=v.ge(1))  # latent cells at which ``row_s`` holds
    mask_share: float = field(default=0.0, validator=v.ge(0))  # what a forward costs more if masks are made of it
    latency_s: float = field(default=0.0, validator=v.ge(0))  # of a message
    bandwidth: float = field(default=math.inf, validator=v.gt(0))  # bytes a second of a rank's link
    tile_s: float = field(default=0.0, validator=v.ge(0))  # of decoding one tile
    serial_s: float = field(default=0.0, validator=v.ge(0))  # of a run, on every rank alike: prompt, saving
    jitter: float = field(default=0.0, validator=v.ge(0))  # deviation of the logarithm of a forward's time
    seed: int = 0  # of the jitter
    speeds: tuple[float, ...] = field(default=(), validator=_all_positive)  # by rank; 1 for the rest

    @classmethod
    def of_pair(cls, pair_s: float, launch_share: float = 0.0, **rest: Any) -> CostModel:
        """From the seconds of a forward of two rows, and the share of them that it takes without any row."""
        return cls(launch_s=pair_s * launch_share, row_s=pair_s * (1 - launch_share) / 2, **rest)

    @classmethod
    def fitted(cls, seconds: Mapping[int, float], **rest: Any) -> CostModel:
        """From measured forwards, rows to seconds: the nearest line in the sense of least squares.

        Raises:
            ConfigError: If there are fewer than two sizes.
        """
        if len(seconds) < 2:
            raise ConfigError(f"a cost model needs forwards of two sizes or more, got {sorted(seconds)} rows")
        mean_x, mean_y = sum(seconds) / len(seconds), sum(seconds.values()) / len(seconds)
        spread = sum((rows - mean_x) ** 2 for rows in seconds)
        slope = sum((rows - mean_x) * (s - mean_y) for rows, s in seconds.items()) / spread
        if slope * mean_x > mean_y:  # no forward starts before it is called
            slope = sum(rows * s for rows, s in seconds.items()) / sum(rows**2 for rows in seconds)
            return cls(row_s=slope, **rest)
        return cls(row_s=max(0.0, slope), launch_s=mean_y - max(0.0, slope) * mean_x, **rest)

    def speed(self, rank: int) -> float:
        """Relative speed of a rank."""
        return self.speeds[rank] if rank < len(self.speeds) else 1.0

    def forward_s(self, rows: int, cells: int | None = None, masked: bool = False) -> float:
        """A forward on a rank of speed 1, without jitter."""
        share = (self.cells if cells is None else cells) / self.cells
        return (self.launch_s + self.row_s * rows * share) * (1 + self.mask_share * masked)

    def spent_s(self, seconds: float, rank: int, step: int, nth: int) -> float:
        """What they become on a rank at a moment: its speed, and jitter of mean 1 that depends on nothing else."""
        if self.jitter:
            where = hashlib.blake2b(f"{self.seed} {rank} {step} {nth}".encode(), digest_size=6).digest()
            normal = NORMAL.inv_cdf((int.from_bytes(where, "big") + 0.5) / 2**48)
            seconds *= math.exp(self.jitter * normal - self.jitter**2 / 2)
        return seconds / self.speed(rank)

    def message_s(self, nbytes: int, copies: int = 1) -> float:
        """A message, of which the sender's link carries so many copies."""
        return self.latency_s + nbytes * copies / self.bandwidth


@frozen
class CostSchedule:
    """A simulated run's ``Schedule`` after a cost model: nothing is left to chance, nothing fails."""

    model: CostModel
    world_size: int

    def choose(self, ready: Sequence[int]) -> int:
        """The lowest; at equal times the order changes no time."""
        return ready[0]

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """The model's message, one copy for each other rank."""
        return self.model.message_s(nbytes, self.world_size - 1)

    def fault(self, rank: int, point: int) -> Fault | None:
        """None."""
        return None


def spend(communicator: RankCommunicator, seconds: float) -> None:
    """Let virtual time pass on a simulated rank; nothing elsewhere, where time passes by itself."""
    sleep = getattr(communicator._transport, "spend", None)
    if sleep is not None:
        sleep(seconds)


@define(eq=False)
class SpendingRows:
    """A plugin of a simulated run: every forward takes the virtual time that the model says.

    Attributes:
        communicator: Of this rank.
        model: What forwards cost.
    """

    communicator: RankCommunicator
    model: CostModel
    _forwards: tuple[int, int] = (-1, 0)  # the step, and how many it has had here

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step: Any, rows: Any) -> Generator[None, Any, Any]:
        """Spend, then let the network answer."""
        nth = self._forwards[1] + 1 if self._forwards[0] == step.index else 0
        self._forwards = step.index, nth
        height, width = rows.views[0].shape
        seconds = self.model.forward_s(len(rows.views), height * width, masked=bool(rows.capture))
        spent = self.model.spent_s(seconds, self.communicator.rank, step.index, nth)
        spend(self.communicator, spent)
        return (yield)
