"""How many rows a forward may take: what it would need against what is free now."""

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

SHARE = 0.6  # of what is free that tensors may take; the rest is scratch memory, fragments and the canvas
CHOICES = (1, 2, 4, 8, 16)  # rows a forward


@frozen(kw_only=True)
class MemoryForecast:
    """What the forwards of a run take of this rank's device, as far as it can be told.

    Attributes:
        rows: Of a forward.
        need_bytes: Its tensors at the peak.
        free_bytes: What is free now, weights that are still elsewhere taken off.
    """

    rows: int
    need_bytes: int | None = None
    free_bytes: int | None = None


def resolve(config: RunConfig, plan: RunPlan, communicator: Communicator, backbone: Backbone) -> RunConfig:
    """A run with its number of rows a forward, which every rank then takes; collective.

    Args:
        config: With ``row_batch`` unset if it is to be chosen; a number that was given stays.
        plan: The run's, for its views.
        communicator: Its ranks.
        backbone: The model where it will run.
    """
    if config.row_batch is not None:
        return config
    own = forecast(plan, backbone, communicator.world_size)
    rows = smallest(communicator, own.rows)
    logger().info("rows.chosen", row_batch=rows, need_bytes=own.need_bytes, free_bytes=own.free_bytes)
    return evolve(config, row_batch=rows)


def forecast(plan: RunPlan, backbone: Backbone, ranks: int, row_batch: int | None = None) -> MemoryForecast:
    """The rows of a forward that fit on this rank now, or what a given number needs.

    On the CPU at most ``ROW_BATCH``, since more are not faster there. On an accelerator the largest of
    ``CHOICES``, but few enough that every rank has work. ``ROW_BATCH`` where nothing can be told.

    Args:
        plan: The run's, for its views.
        backbone: The model where it will run.
        ranks: Of the run; on the CPU they share the memory.
        row_batch: The number that was given, or None.
    """
    network = backbone.network
    free = None if network is None else free_bytes(backbone.device)
    if free is None:
        return MemoryForecast(rows=row_batch or ROW_BATCH)
    on_cpu = backbone.device.type == "cpu"
    free = free // ranks if on_cpu else free - absent_bytes(network, backbone.device)
    shapes, rows = _work(plan)
    try:
        each = row_bytes(network, max(shapes, key=math.prod))
    except CapabilityError:
        return MemoryForecast(rows=row_batch or ROW_BATCH, free_bytes=free)
    most = ROW_BATCH if on_cpu else max(1, rows // ranks)
    fitting = [count for count in CHOICES if count <= most and count * each <= SHARE * free]
    chosen = row_batch or max(fitting, default=1)
    return MemoryForecast(rows=chosen, need_bytes=chosen * each, free_bytes=free)


def smallest(communicator: Communicator, own: int) -> int:
    """The smallest of all ranks' numbers; collective."""
    ranks = range(communicator.world_size)
    if len(ranks) == 1:
        return own
    every = {rank: torch.zeros(1, dtype=torch.int64, device=communicator.device) for rank in ranks}
    mine = torch.tensor([own], dtype=torch.int64, device=communicator.device)
    communicator.all_gather_into(every, {communicator.rank: mine}, {rank: rank for rank in ranks})
    return min(int(each) for each in every.values())


def _work(plan: RunPlan) -> tuple[list[tuple[int, int]], int]:
    """The shapes of all views, and the rows of the stage that has the fewest."""
    starts = [step for step, _ in plan.stage_starts()]
    shapes = [outline.shape for step in starts for outline in plan.outlines(step)]
    return shapes, min(plan.count_views(step) for step in starts) * len(plan.branches)


def absent_bytes(network: Any, device: torch.device) -> int:
    """Weights that wait elsewhere and come to the device for a forward, as with CPU offload."""
    parameters = (p for p in network.parameters() if p.device.type != device.type)
    return sum(p.numel() * p.element_size() for p in parameters)
