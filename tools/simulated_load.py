"""A program for the simulator that communicates like the engine and spends virtual time instead of computing.

``vitrail.comm.trace.speedup_model`` predicts its makespan, and `vitrail timeline` draws its traces as an example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitrail.comm.backends.simulated import Simulated
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.dataflow import AHEAD, StepUnit
from vitrail.comm.dataflow_exchange import DataflowExchange
from vitrail.comm.outcome import RankOutcome
from vitrail.comm.partition import assign
from vitrail.comm.protocol import Channel
from vitrail.comm.trace.cost_model import CostModel, CostSchedule, spend
from vitrail.comm.trace.speedup_model import Batch, RunLoad, StageLoad, share_out


def simulate(load: RunLoad, cost: CostModel, world_size: int) -> RankOutcome[None]:
    """Run a load on the simulator.

    Args:
        load: The load.
        cost: The cost model.
        world_size: Number of ranks.
    """
    schedule = CostSchedule(cost, world_size)
    return Simulated(timeout=1e9).simulate(world_size, lambda comm: Program(load, cost, comm).run(), schedule)


class Program:
    """The program of one rank."""

    def __init__(self, load: RunLoad, cost: CostModel, communicator: RankCommunicator):
        self.load, self.cost, self.communicator = load, cost, communicator
        self.rank, self.size, self.step = communicator.rank, communicator.world_size, 0

    def run(self) -> None:
        """Run all stages, decoding and the serial part."""
        for number, stage in enumerate(self.load.stages):
            if stage.exchange == "dataflow":
                self.flowing_stage(number, stage)
                continue
            shares = share_out(stage, self.load.row_batch, self.cost, self.size)
            relayed = stage.exchange == "channel"
            (self.relayed_stage if relayed else self.gathered_stage)(number, stage, shares)
        self.decode()
        self.compute("serial", self.cost.serial_s)

    def gathered_stage(self, number: int, stage: StageLoad, shares: Sequence[Sequence[Batch]]) -> None:
        """Run a stage that gathers: begin a gather after each micro-batch, wait for all at the end of the step.

        Args:
            number: Index of the stage.
            stage: The stage.
            shares: Micro-batches of each rank.
        """
        for _ in range(stage.steps):
            works = []
            for turn in range(max(map(len, shares))):
                if turn < len(shares[self.rank]):
                    self.forward(number, stage, shares[self.rank][turn], turn)
                sizes = {r: share[turn].rows * stage.row_bytes for r, share in enumerate(shares) if turn < len(share)}
                works.append(self.begin_gather(sizes))
            for finish in works:
                finish()
            self.step += 1

    def flowing_stage(self, number: int, stage: StageLoad) -> None:
        """Run a stage as a dataflow: each micro-batch once what it needs is here; wait for all in the end.

        Args:
            number: Index of the stage.
            stage: The stage.
        """
        load = stage.dataflow(self.load.row_batch, self.cost, self.size)

        def like(unit: StepUnit) -> Tensor:
            return torch.zeros(load.rows[unit.unit] * stage.row_bytes, dtype=torch.uint8)

        exchange = DataflowExchange(self.communicator, load.order, [load.needs] * stage.steps, like, lambda: False)
        counts: Counter[int] = Counter()
        begin = self.step
        for step in range(stage.steps):
            exchange.stops_before(step)
            self.complete(exchange, step - AHEAD)
            while (unit := exchange.next(step)) is not None:
                self.complete(exchange, unit.step - AHEAD)
                exchange.ready(unit)
                self.step = begin + unit.step
                batch = Batch(unit.unit, load.rows[unit.unit], with_key=False)
                self.forward(number, stage, batch, counts[unit.step])
                counts[unit.step] += 1
                exchange.send(unit, like(unit))
        self.complete(exchange, stage.steps - 1)
        exchange.finish()
        self.step = begin + stage.steps

    @staticmethod
    def complete(exchange: DataflowExchange, last: int) -> None:
        """Wait for all units of the steps up to one, and drop them."""
        for step in range(last + 1):
            exchange.wait(exchange.units(step))
            exchange.drop(step)

    def relayed_stage(self, number: int, stage: StageLoad, shares: Sequence[Sequence[Batch]]) -> None:
        """Run a stage with guidance by channel: own views only, and a gather at the end.

        Args:
            number: Index of the stage.
            stage: The stage.
            shares: Micro-batches of each rank.
        """
        if not stage.steps:
            return
        source = next(r for r, share in enumerate(shares) if any(batch.with_key for batch in share))
        shape = (stage.message_bytes // 4,)
        channel: Channel = self.communicator.channel(
            f"stage {number}", src=source, shape=shape, dtype=torch.float32, max_staleness=stage.max_staleness
        )
        mine = list(enumerate(shares[self.rank]))
        for step in range(stage.steps):
            for nth, batch in (item for item in mine if item[1].with_key):
                self.forward(number, stage, batch, nth)
            channel.publish(step, torch.zeros(shape) if self.rank == source else None)
            for nth, batch in (item for item in mine if not item[1].with_key):
                self.forward(number, stage, batch, nth)
            version = step - (0 if step < stage.warmup_steps else stage.lag)
            if version >= 0:
                channel.fetch(version)
            self.step += 1
        rows = {rank: sum(batch.rows for batch in share) for rank, share in enumerate(shares)}
        self.begin_gather({rank: n * stage.row_bytes // stage.branches for rank, n in rows.items()})()

    def decode(self) -> None:
        """Decode the rank's own tiles, then gather."""
        owners = assign([1.0] * self.load.tiles, [self.cost.speed(rank) for rank in range(self.size)])
        for nth in range(owners.count(self.rank)):
            self.compute("decode tile", self.cost.spent_s(self.cost.tile_s, self.rank, self.step, nth))
        if owners:
            self.begin_gather({rank: owners.count(rank) * self.load.tile_bytes for rank in range(self.size)})()

    def forward(self, number: int, stage: StageLoad, batch: Batch, nth: int) -> None:
        """Spend the time of a micro-batch's forward.

        Args:
            number: Index of the stage.
            stage: The stage.
            batch: The micro-batch.
            nth: Index of the micro-batch in the step, for the jitter.
        """
        masked = stage.masked == "all" or (stage.masked == "key" and batch.with_key)
        seconds = self.cost.forward_s(batch.rows, stage.cells, masked)
        seconds = self.cost.spent_s(seconds, self.rank, self.step, nth)
        self.compute("forward", seconds, step=self.step, stage=number, rows=batch.rows)

    def compute(self, name: str, seconds: float, **args: int) -> None:
        """Record a span in which virtual time passes."""
        if seconds:
            with self.communicator.trace.span("compute", name, **args):
                spend(self.communicator, seconds)

    def begin_gather(self, sizes: dict[int, int]) -> Callable[[], None]:
        """Begin an all-gather of one part per rank, of ``sizes`` bytes, and return a function that waits for it."""
        out: dict[int, Tensor] = {rank: torch.zeros(nbytes, dtype=torch.uint8) for rank, nbytes in sizes.items()}
        mine = {self.rank: out[self.rank]} if self.rank in sizes else {}
        work = self.communicator.all_gather_into(out, mine, {rank: rank for rank in sizes}, async_op=True)
        assert work is not None
        return work.wait
