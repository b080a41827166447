"""Cost model of a run: seconds of forwards, messages, tiles and of serial work.

A forward of b rows takes ``launch + b * row`` seconds, the row's part in proportion to its latent cells. Attention
grows faster than that, so a model is valid near the view size at which it was measured. A message takes ``latency +
bytes / bandwidth``; a rank's link carries one copy for each reader, and links are independent.
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
NATIVE_CELLS = 128 * 128  # latent cells of a view of SDXL


def _all_positive(_: Any, __: Any, speeds: Sequence[float]) -> None:
    if not all(speed > 0 and math.isfinite(speed) for speed in speeds):
        raise ConfigError(f"relative speeds of ranks must be positive numbers, got {list(speeds)}")


@frozen(kw_only=True)
class CostModel:
    """Durations of everything that takes time, in seconds unless stated."""

    row_s: float = field(validator=v.ge(0))  # one row of ``cells`` cells in a forward
    launch_s: float = field(default=0.0, validator=v.ge(0))  # a forward, whatever its number of rows
    cells: int = field(default=NATIVE_CELLS, validator=v.ge(1))  # latent cells of a row that takes ``row_s``
    mask_share: float = field(default=0.0, validator=v.ge(0))  # extra share of a forward that captures maps
    latency_s: float = field(default=0.0, validator=v.ge(0))  # a message
    bandwidth: float = field(default=math.inf, validator=v.gt(0))  # of a rank's link, bytes per second
    tile_s: float = field(default=0.0, validator=v.ge(0))  # decoding one tile
    serial_s: float = field(default=0.0, validator=v.ge(0))  # work that is not shared: prompt, saving
    jitter: float = field(default=0.0, validator=v.ge(0))  # standard deviation of the logarithm of a forward's time
    seed: int = 0  # seed of the jitter
    speeds: tuple[float, ...] = field(default=(), validator=_all_positive)  # relative speeds by rank; 1 for the rest

    @classmethod
    def of_pair(cls, pair_s: float, launch_share: float = 0.0, **rest: Any) -> CostModel:
        """Return the model of a forward of two rows.

        Args:
            pair_s: Seconds of the forward.
            launch_share: Share of them that does not depend on the number of rows.
            **rest: Further fields.
        """
        return cls(launch_s=pair_s * launch_share, row_s=pair_s * (1 - launch_share) / 2, **rest)

    @classmethod
    def fitted(cls, seconds: Mapping[int, float], **rest: Any) -> CostModel:
        """Fit a model to measured forwards, from number of rows to seconds, by least squares.

        Raises:
            ConfigError: If there are fewer than two sizes.
        """
        if len(seconds) < 2:
            raise ConfigError(f"a cost model needs forwards of two sizes or more, got {sorted(seconds)} rows")
        mean_x, mean_y = sum(seconds) / len(seconds), sum(seconds.values()) / len(seconds)
        spread = sum((rows - mean_x) ** 2 for rows in seconds)
        slope = sum((rows - mean_x) * (s - mean_y) for rows, s in seconds.items()) / spread
        if slope * mean_x > mean_y:  # a negative launch time: fit a line through the origin
            slope = sum(rows * s for rows, s in seconds.items()) / sum(rows**2 for rows in seconds)
            return cls(row_s=slope, **rest)
        return cls(row_s=max(0.0, slope), launch_s=mean_y - max(0.0, slope) * mean_x, **rest)

    def speed(self, rank: int) -> float:
        """Return the relative speed of a rank."""
        return self.speeds[rank] if rank < len(self.speeds) else 1.0

    def forward_s(self, rows: int, cells: int | None = None, masked: bool = False) -> float:
        """Return the seconds of a forward on a rank of speed 1, without jitter.

        Args:
            rows: Number of rows.
            cells: Latent cells of a row; ``self.cells`` if None.
            masked: Whether attention maps are captured.
        """
        share = (self.cells if cells is None else cells) / self.cells
        return (self.launch_s + self.row_s * rows * share) * (1 + self.mask_share * masked)

    def spent_s(self, seconds: float, rank: int, step: int, nth: int) -> float:
        """Return the seconds on a rank, with its speed and with jitter of mean 1.

        Args:
            seconds: Duration at speed 1.
            rank: The rank.
            step: Step of the run; jitter is a function of seed, rank, step and ``nth`` alone.
            nth: Number of the forward in the step on this rank.
        """
        if self.jitter:
            where = hashlib.blake2b(f"{self.seed} {rank} {step} {nth}".encode(), digest_size=6).digest()
            normal = NORMAL.inv_cdf((int.from_bytes(where, "big") + 0.5) / 2**48)
            seconds *= math.exp(self.jitter * normal - self.jitter**2 / 2)
        return seconds / self.speed(rank)

    def message_s(self, nbytes: int, copies: int = 1) -> float:
        """Return the seconds of a message of which the sender's link carries ``copies`` copies."""
        return self.latency_s + nbytes * copies / self.bandwidth


@frozen
class CostSchedule:
    """A ``Schedule`` of simulated runs that follows a cost model: deterministic, without faults."""

    model: CostModel
    world_size: int

    def choose(self, ready: Sequence[int]) -> int:
        """Return the lowest rank; at equal times the order does not affect times."""
        return ready[0]

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Return the model's time for a message with one copy per other rank; see ``Schedule.delay``."""
        return self.model.message_s(nbytes, self.world_size - 1)

    def fault(self, rank: int, point: int) -> Fault | None:
        """Return None: no faults."""
        return None


def spend(communicator: RankCommunicator, seconds: float) -> None:
    """Let virtual time pass on a simulated rank; no effect on other backends."""
    sleep = getattr(communicator._transport, "spend", None)
    if sleep is not None:
        sleep(seconds)


@define(eq=False)
class SpendingRows:
    """A plugin of a simulated run: every forward takes the virtual time of the cost model.

    Attributes:
        communicator: This rank's communicator.
        model: Cost of forwards.
    """

    communicator: RankCommunicator
    model: CostModel
    _forwards: tuple[int, int] = (-1, 0)  # step, and number of its forwards on this rank

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step: Any, rows: Any) -> Generator[None, Any, Any]:
        """Let the virtual time pass, then call the network."""
        nth = self._forwards[1] + 1 if self._forwards[0] == step.index else 0
        self._forwards = step.index, nth
        height, width = rows.views[0].shape
        seconds = self.model.forward_s(len(rows.views), height * width, masked=bool(rows.capture))
        spent = self.model.spent_s(seconds, self.communicator.rank, step.index, nth)
        spend(self.communicator, spent)
        return (yield)
