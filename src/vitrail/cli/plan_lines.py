"""Lines on what a run will do, shown before it begins: sizes, stages, cost, memory, threads and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.cpu_threads import threads_in_bits
from vitrail.core.engine.exchange import MEASURED

if TYPE_CHECKING:
    from vitrail.backbones.memory.forecast import MemoryForecast
    from vitrail.cli.ranks import RankPlacement
    from vitrail.core.engine.compiling import Graphs
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.sampling.result import Plan, UpscalingPlan


def plan_lines(run: RunConfig, plan: Plan) -> Iterator[str]:
    """Yield the lines on size, stages and cost."""
    yield (
        f"{run.width}x{run.height} pixels, {plan.canvas.width}x{plan.canvas.height} latent cells, "
        f"model {run.model}, method {Path(run.method).stem}, seed {run.seed}"
    )
    sizes = {stage.size for stage in plan.stages} | {upscaling.after for upscaling in plan.upscalings}
    for stage in plan.stages:
        steps = f"steps {stage.first_step + 1} to {stage.first_step + stage.num_steps}"
        size = f" at {stage.size[1]}x{stage.size[0]}" if len(sizes) > 1 else ""
        views = f"{stage.num_views} view{'s' * (stage.num_views > 1)} a step"
        if run.regions:
            views += f", asked {stage.num_asked} times for {len(run.regions)} region{'s' * (len(run.regions) > 1)}"
        yield f"  stage {stage.stage + 1}{size}: {steps}, {views}, {stage.strategies}"
    yield from map(_upscaling_line, plan.upscalings)
    pictures = f" for {run.num_images} pictures" if run.num_images > 1 else ""
    yield f"  {plan.model_calls * run.num_images} evaluations of the network{pictures}{_besides(plan, run.num_images)}"


def _upscaling_line(upscaling: UpscalingPlan) -> str:
    """Text on one call of an upscaler: sizes, passes of its network, memory as far as it is known."""
    (down, right), (height, width), cost = upscaling.before, upscaling.after, upscaling.cost
    passes = f", {cost.passes} pass{'es' * (cost.passes > 1)} of its network" if cost.passes else ""
    memory = "" if cost.peak_bytes is None else f", about {cost.peak_bytes / 1e9:.2f} GB"
    return f"  upscaling {right}x{down} to {width}x{height}: {upscaling.upscaler}{passes}{memory}"


def _besides(plan: Plan, num_images: int) -> str:
    """Text on the VAE's work besides the final decoding, and on views with gradients."""
    decodes, encodes = (plan.cost.decodes - 1) * num_images, plan.cost.encodes * num_images
    vae_calls = f"; on the way the VAE decodes {decodes} and encodes {encodes} pictures" if decodes or encodes else ""
    gradients = plan.cost.gradients * num_images
    return vae_calls + (f"; {gradients} views are differentiated, through VAE and network" if gradients else "")


def memory_lines(outlook: MemoryForecast) -> Iterator[str]:
    """Yield the line on rows and memory of a forward pass, as far as they are known."""
    rows = f"  {outlook.rows} row{'s' * (outlook.rows > 1)} a forward"
    if outlook.need_bytes is None or outlook.free_bytes is None:
        yield rows
        return
    need, free = (f"{count / 1e9:.2f} GB" for count in (outlook.need_bytes, outlook.free_bytes))
    yield f"{rows}: about {need} beside the weights, of {free} that are free"


def compile_lines(graphs: Graphs) -> Iterator[str]:
    """Yield the line on the graphs that a compiled run makes."""
    count = len(graphs.shapes)
    shapes = ", ".join(f"{rows} of {width}x{height}" for rows, height, width in graphs.shapes)
    line = f"  {count} graph{'s' * (count != 1)} of the network to compile"
    line += f", for rows of latent cells: {shapes}" if shapes else ""
    line += f"; {graphs.beside} more at most for what guidance asks" if graphs.beside else ""
    yield line + ("; forwards whose attention is captured run uncompiled" if graphs.captures else "")


def thread_lines(backbone: Backbone) -> Iterator[str]:
    """Yield the line on threads per operator, if their number changes the last bits of the picture."""
    count = threads_in_bits(backbone)
    if count is not None:
        yield f"  {count} thread{'s' * (count > 1)} an operator (OMP_NUM_THREADS), which the last bits follow"


def exchange_lines(placement: RankPlacement, run_plan: RunPlan, watched: bool) -> Iterator[str]:
    """Yield a line for every stage on what its ranks wait for, if they shall exchange as a dataflow.

    Args:
        placement: How the ranks are created.
        run_plan: The plan of the run.
        watched: Whether previews are made, which read the whole canvas.
    """
    from vitrail.core.engine.dataflow_plan import exchange_text

    if placement.options.exchange != "dataflow":
        return
    if placement.world_size == 1:
        yield "  --exchange dataflow: one rank waits for no other"
        return
    for step, _ in run_plan.stage_starts():
        yield f"  stage {step.stage + 1}: {exchange_text(run_plan, step, watched)}"


def rank_lines(placement: RankPlacement, plan: Plan, row_batch: int) -> Iterator[str]:
    """Yield the lines on several ranks, and on stages with fewer micro-batches than ranks.

    Args:
        placement: How the ranks are created.
        plan: Plan of the run.
        row_batch: Rows of a micro-batch.
    """
    is_measured = placement.options.speeds == MEASURED
    if placement.world_size == 1:
        if is_measured:
            yield f"  --speeds {MEASURED}: one rank does all the work"
        return
    yield f"  {placement.world_size} ranks, {placement.options.comm or 'as processes'}"
    if is_measured:
        yield "  speeds: measured on the first step"
    for stage in plan.stages:
        batches = math.ceil(stage.num_asked * stage.num_branches / row_batch)
        if batches < placement.world_size:
            yield (
                f"  stage {stage.stage + 1} has {batches} micro-batch{'es' * (batches > 1)} a step, which is work for "
                f"{batches} of {placement.world_size} ranks; a smaller --row-batch divides it further"
            )
