"""Choice of the rows per forward from the memory that they need and that is free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen

from vitrail.backbones.memory.footprint import row_bytes
from vitrail.backbones.memory.free_memory import free_bytes
from vitrail.core.config.log import logger
from vitrail.core.config.run_config import ROW_BATCH, RunConfig
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from vitrail.comm.protocol import Communicator
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone

SHARE = 0.6  # of free memory for tensors; the rest is for scratch, fragmentation and the canvas
CHOICES = (1, 2, 4, 8, 16)  # rows per forward


@frozen(kw_only=True)
class MemoryForecast:
    """Memory of a run's forwards on this rank's device, as far as it is known.

    Attributes:
        rows: Rows per forward.
        need_bytes: Peak bytes of its tensors.
        free_bytes: Bytes that are free now, less weights that are still offloaded.
    """

    rows: int
    need_bytes: int | None = None
    free_bytes: int | None = None


def resolve(config: RunConfig, plan: RunPlan, communicator: Communicator, backbone: Backbone) -> RunConfig:
    """Return the run with its number of rows per forward, equal on every rank; collective.

    Args:
        config: The run; a ``row_batch`` that is set is kept.
        plan: Plan of the run, for its views.
        communicator: The ranks.
        backbone: The model, on the device where it will run.
    """
    if config.row_batch is not None:
        return config
    own = forecast(plan, backbone, communicator.world_size)
    rows = smallest(communicator, own.rows)
    logger().info("rows.chosen", row_batch=rows, need_bytes=own.need_bytes, free_bytes=own.free_bytes)
    return evolve(config, row_batch=rows)


def forecast(
    plan: RunPlan, backbone: Backbone, ranks: int, row_batch: int | None = None, unloaded: int = 0
) -> MemoryForecast:
    """Choose the rows per forward that fit on this rank now, or report what a given number needs.

    On the CPU at most ``ROW_BATCH``, since more are not faster there. On an accelerator the largest of ``CHOICES`` that
    leaves work for every rank. ``ROW_BATCH`` where need or free memory is unknown.

    Args:
        plan: Plan of the run, for its views.
        backbone: The model, on the device where it will run.
        ranks: Number of ranks; on the CPU they share memory.
        row_batch: A given number of rows, or None to choose.
        unloaded: Bytes of weights besides the network's that are to be loaded yet.
    """
    network = backbone.network
    free = None if network is None else free_bytes(backbone.device)
    if free is None:
        return MemoryForecast(rows=row_batch or ROW_BATCH)
    on_cpu = backbone.device.type == "cpu"
    free = max(0, free - unloaded - absent_bytes(network, backbone.device))
    free = free // ranks if on_cpu else free
    shapes, rows = _work(plan)
    try:
        each = math.ceil(row_bytes(network, max(shapes, key=math.prod)) * _beside(plan))
    except CapabilityError:
        return MemoryForecast(rows=row_batch or ROW_BATCH, free_bytes=free)
    most = ROW_BATCH if on_cpu else max(1, rows // ranks)
    fitting = [count for count in CHOICES if count <= most and count * each <= SHARE * free]
    chosen = row_batch or max(fitting, default=1)
    return MemoryForecast(rows=chosen, need_bytes=chosen * each, free_bytes=free)


def smallest(communicator: Communicator, own: int) -> int:
    """Return the smallest of all ranks' numbers; collective."""
    ranks = range(communicator.world_size)
    if len(ranks) == 1:
        return own
    every = {rank: torch.zeros(1, dtype=torch.int64, device=communicator.device) for rank in ranks}
    mine = torch.tensor([own], dtype=torch.int64, device=communicator.device)
    communicator.all_gather_into(every, {communicator.rank: mine}, {rank: rank for rank in ranks})
    return min(int(each) for each in every.values())


def _work(plan: RunPlan) -> tuple[list[tuple[int, int]], int]:
    """Return the shapes of all views, and the rows of the stage that has the fewest."""
    starts = [step for step, _ in plan.stage_starts()]
    shapes = [outline.shape for step in starts for outline in plan.outlines(step)]
    return shapes, min(plan.count_asked(step) * plan.most_branches(step) for step in starts)


def _beside(plan: RunPlan) -> float:
    """Return the most rows that are computed in a forward, rectifications' own included, per row that is asked."""
    most = 1.0
    for step, _ in plan.stage_starts():
        for cells, _ in plan.forwards_of_groups(step):
            branches = plan.branches_at(step)
            beside = [sum(plan.cost_beside(step, [(each, cells, 1)]).rows.values()) for each in branches]
            most = max(most, 1 + max(beside))  # a micro-batch may have rows of one branch alone
    return most


def absent_bytes(network: Any, device: torch.device) -> int:
    """Return the bytes of weights that are not on the device yet: with CPU offload, or without values."""
    parameters = (p for p in network.parameters() if p.device.type != device.type)
    return sum(p.numel() * p.element_size() for p in parameters)
