"""Run time on several ranks, computed from a cost model without network, threads or clock.

Ranks share micro-batches as ``partition`` says. In a stage with exchange "gather" each finished micro-batch is sent to
all ranks while the next one is computed, and a step ends when a rank has all of them. With exchange "channel" a rank
advances its own views and reads the key view's message of ``lag`` steps before; there is no collective until the
stage ends. In one with exchange "dataflow" each finished micro-batch is sent to all ranks, too, and a window is
computed once those that it overlaps are there, of the step before. The simulator gives the same times for a program
that computes and communicates in this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.dataflow import AHEAD
from vitrail.comm.partition import assign, rounds
from vitrail.comm.trace.cost_model import NATIVE_CELLS, CostModel
from vitrail.comm.trace.dataflow_load import DataflowLoad
from vitrail.errors import ConfigError

Times = list[float]
Masked = Literal["none", "key", "all"]
FLOAT = 4  # bytes of a float32
CHANNELS = 4


@frozen(kw_only=True)
class StageLoad:
    """The work of a stage."""

    steps: int = field(validator=v.ge(0))
    views: int = field(validator=v.ge(1))  # forwards of a branch per step, clean key views included
    branches: int = field(default=2, validator=v.ge(1))  # rows of a view
    cells: int = field(default=NATIVE_CELLS, validator=v.ge(1))  # latent cells of a view
    key: int = 0  # the view that is computed first
    masked: Masked = "none"  # forwards whose attention maps are captured
    exchange: Literal["gather", "channel", "dataflow"] = "gather"
    grid: tuple[int, int] = (1, 1)  # windows down and across, of half overlap; for "dataflow"
    lag: int = field(default=1, validator=v.ge(0))  # age in steps of the message that views follow
    warmup_steps: int = field(default=1, validator=v.ge(0))  # steps at the beginning, with a lag of 0
    max_staleness: int = field(default=1, validator=v.ge(0))  # staleness bound of the channel

    def __attrs_post_init__(self) -> None:
        if self.exchange == "dataflow" and math.prod(self.grid) != self.views:
            raise ConfigError(f"a dataflow of {self.views} views needs as many windows, got a grid of {self.grid}")

    def dataflow(self, row_batch: int, cost: CostModel, world_size: int) -> DataflowLoad:
        """Return the micro-batches of a stage with exchange "dataflow"; see ``share_out`` for the arguments."""
        speeds = [cost.speed(rank) for rank in range(world_size)]
        return DataflowLoad.of_windows(self.grid, self.branches, row_batch, self.steps, speeds)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's output."""
        return FLOAT * CHANNELS * self.cells

    @property
    def message_bytes(self) -> int:
        """Bytes of the key view's message: its prediction and the mask."""
        return FLOAT * (CHANNELS + 1) * self.cells


@frozen(kw_only=True)
class RunLoad:
    """The work of a run."""

    stages: tuple[StageLoad, ...]
    row_batch: int = field(default=2, validator=v.ge(1))  # largest number of rows per forward
    tiles: int = field(default=0, validator=v.ge(0))  # tiles of the decoder
    tile_bytes: int = 0  # bytes of a decoded tile


@frozen(kw_only=True)
class Forecast:
    """Predicted times of a run, seconds."""

    makespan_s: float
    busy_s: tuple[float, ...]  # computing, by rank

    @property
    def busy_share(self) -> float:
        """Share of the ranks' time in which they compute."""
        return sum(self.busy_s) / (len(self.busy_s) * self.makespan_s) if self.makespan_s else 0.0


@frozen
class Batch:
    """One micro-batch of a rank."""

    unit: int
    rows: int
    with_key: bool


def share_out(load: StageLoad, row_batch: int, cost: CostModel, world_size: int) -> list[list[Batch]]:
    """Return the micro-batches of every rank at a step, in the order of computation.

    Args:
        load: The stage.
        row_batch: Largest number of rows per micro-batch.
        cost: Gives the ranks' speeds.
        world_size: Number of ranks.
    """
    total = load.views * load.branches
    sizes = [min(row_batch, total - begin) for begin in range(0, total, row_batch)]
    key_rows = range(load.key * load.branches, (load.key + 1) * load.branches)
    batches = [
        Batch(unit, size, any(unit * row_batch <= row < unit * row_batch + size for row in key_rows))
        for unit, size in enumerate(sizes)
    ]
    first = max(batch.unit for batch in batches if batch.with_key)  # holds the branch whose maps are captured
    together = math.lcm(row_batch, load.branches) // row_batch if load.exchange == "channel" else 1
    groups = [batches[begin : begin + together] for begin in range(0, len(batches), together)]
    speeds = [cost.speed(rank) for rank in range(world_size)]
    owners = assign([sum(batch.rows for batch in group) for group in groups], speeds, first // together)
    shares: list[list[Batch]] = [[] for _ in speeds]
    for unit in (unit for turn in rounds(owners, world_size, first // together) for unit in turn):
        shares[owners[unit]] += groups[unit]
    if load.exchange == "channel":  # the message needs all branches
        return [sorted(share, key=lambda batch: not batch.with_key) for share in shares]
    return shares


def predict(load: RunLoad, cost: CostModel, world_size: int) -> Forecast:
    """Predict the times of a run.

    Args:
        load: The work of the run.
        cost: Durations.
        world_size: Number of ranks.
    """
    clock = _Clock(cost, world_size)
    for stage in load.stages:
        if stage.exchange == "dataflow":
            clock.flowing_stage(stage, stage.dataflow(load.row_batch, cost, world_size))
            continue
        shares = share_out(stage, load.row_batch, cost, world_size)
        if stage.exchange == "gather":
            for _ in range(stage.steps):
                clock.gathered_step(stage, shares)
        elif stage.steps:
            clock.relayed_stage(stage, shares)
    clock.decode(load.tiles, load.tile_bytes)
    return Forecast(makespan_s=max(clock.now) + cost.serial_s, busy_s=tuple(clock.busy))


class _Clock:
    """The current time of every rank."""

    def __init__(self, cost: CostModel, world_size: int):
        self._cost, self._size = cost, world_size
        self._copies = world_size - 1
        self._step = 0  # step of the run
        self.now: Times = [0.0] * world_size
        self.busy: Times = [0.0] * world_size

    def gathered_step(self, stage: StageLoad, shares: Sequence[Sequence[Batch]]) -> None:
        """Compute, send each micro-batch as soon as it is done, wait for all ranks'."""
        turns = max(map(len, shares))
        arrivals = []
        for rank, share in enumerate(shares):
            arrival = -math.inf
            for nth, batch in enumerate(share):
                self._compute(stage, rank, nth, batch)
                arrival = max(arrival, self.now[rank] + self._message(batch.rows * stage.row_bytes))
            if len(share) < turns:  # it takes part in the last round without data
                arrival = max(arrival, self.now[rank] + self._message(0))
            arrivals.append(arrival)
        self._meet(arrivals)
        self._step += 1

    def relayed_stage(self, stage: StageLoad, shares: Sequence[Sequence[Batch]]) -> None:
        """Do steps coupled by the key view's messages alone, then one gather."""
        self._meet([time + self._message(0) for time in self.now])  # opens the channel
        source = next(rank for rank, share in enumerate(shares) if any(batch.with_key for batch in share))
        sent = [stage.message_bytes * (rank == source) for rank in range(self._size)]
        posted: list[Times] = []  # by version: arrival times of each rank's share
        for step in range(stage.steps):
            num_first: list[int] = []
            for rank, share in enumerate(shares):
                num_first.append(sum(batch.with_key for batch in share))
                for nth, batch in enumerate(share[: num_first[rank]]):
                    self._compute(stage, rank, nth, batch)
            old = step - stage.max_staleness - 2
            if old >= 0:  # the slot of that version must be free everywhere
                self._meet(posted[old])
            arrivals = [time + self._message(nbytes) for time, nbytes in zip(self.now, sent, strict=True)]
            posted.append(arrivals)
            for rank, share in enumerate(shares):
                for nth, batch in enumerate(share[num_first[rank] :], num_first[rank]):
                    self._compute(stage, rank, nth, batch)
            read = step - (0 if step < stage.warmup_steps else stage.lag)
            for rank in (rank for rank in range(self._size) if rank != source and read >= 0):
                self.now[rank] = max(self.now[rank], posted[read][source])
            self._step += 1
        sizes = [sum(batch.rows for batch in share) * stage.row_bytes // stage.branches for share in shares]
        self._meet([time + self._message(nbytes) for time, nbytes in zip(self.now, sizes, strict=True)])

    def flowing_stage(self, stage: StageLoad, load: DataflowLoad) -> None:
        """Compute each micro-batch once what it needs is here; wait for all in the end."""
        arrivals: dict[tuple[int, int], Times] = {}  # of every micro-batch, at each rank
        whole: list[Times] = []  # arrival of all micro-batches of each step and those before, at each rank
        counts: dict[tuple[int, int], int] = {}  # micro-batches so far, by rank and step
        left = [len(load.rows)] * stage.steps
        for unit in load.order:
            rank, needs = unit.owner, load.needs[unit.unit] if unit.step else ()
            here = [arrivals[unit.step - 1, need][rank] for need in needs]
            here += [whole[unit.step - AHEAD][rank]] if unit.step >= AHEAD else []
            self.now[rank] = max([self.now[rank], *here])
            nth = counts.get((rank, unit.step), 0)
            counts[rank, unit.step] = nth + 1
            rows = load.rows[unit.unit]
            seconds = self._cost.forward_s(rows, stage.cells, stage.masked == "all")
            self._spend(rank, nth, seconds, self._step + unit.step)
            sent = self.now[rank] + self._message(rows * stage.row_bytes)
            arrivals[unit.step, unit.unit] = [self.now[rank] if r == rank else sent for r in range(self._size)]
            left[unit.step] -= 1
            if not left[unit.step]:
                every = [arrivals[unit.step, each] for each in range(len(load.rows))]
                whole.append([max(times[r] for times in every) for r in range(self._size)])
                if unit.step:
                    whole[-1] = list(map(max, whole[-1], whole[-2]))
        if whole:
            self.now = list(map(max, self.now, whole[-1]))
        self._step += stage.steps

    def decode(self, tiles: int, tile_bytes: int) -> None:
        """Decode tiles on all ranks, then gather them."""
        if not tiles:
            return
        owners = assign([1.0] * tiles, [self._cost.speed(rank) for rank in range(self._size)])
        counts = [0] * self._size
        for owner in owners:
            self._spend(owner, counts[owner], self._cost.tile_s)
            counts[owner] += 1
        self._meet([at + self._message(n * tile_bytes) for at, n in zip(self.now, counts, strict=True)])

    def _compute(self, stage: StageLoad, rank: int, nth: int, batch: Batch) -> None:
        masked = stage.masked == "all" or (stage.masked == "key" and batch.with_key)
        self._spend(rank, nth, self._cost.forward_s(batch.rows, stage.cells, masked))

    def _spend(self, rank: int, nth: int, seconds: float, step: int | None = None) -> None:
        spent = self._cost.spent_s(seconds, rank, self._step if step is None else step, nth)
        self.now[rank] += spent
        self.busy[rank] += spent

    def _message(self, nbytes: int) -> float:
        return self._cost.message_s(nbytes, self._copies)

    def _meet(self, arrivals: Sequence[float]) -> None:
        """Let every rank wait for what the others sent; its own share is available at once."""
        last = max(range(self._size), key=lambda rank: arrivals[rank])
        second = max((time for rank, time in enumerate(arrivals) if rank != last), default=-math.inf)
        for rank in range(self._size):
            self.now[rank] = max(self.now[rank], second if rank == last else arrivals[last])
