"""Stages without collectives: each rank advances its own views, guided by the key view's messages.

Possible where views are a partition of the canvas, pixels are not permuted, and guidance reads the key view's message
alone. A rank then holds a canvas of full shape in which only its own cells are valid; all operations after a prediction
work cell by cell, so invalid cells affect nothing. The canvas is gathered at the end of the stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve

from vitrail.core.engine.exchange import Exchange, whole_views
from vitrail.core.engine.micro_batches import gather_views
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFusion, OptionalMasking, OptionalPatching, has_own, points_of, speaks
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.method.returned_values import check_lag
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.protocol import Channel
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.micro_batch import Branch, MicroBatch
    from vitrail.core.method.protocols import MessageGuidance
    from vitrail.core.method.stage import Stage
    from vitrail.core.schedule.step import Step

AHEAD = 4  # messages that the key view's rank may be ahead of the slowest reader
Combine = Callable[[Sequence[ModelOutput]], "Tensor"]
Tell = Callable[["MessageGuidance", Prediction, ModelOutput], "Tensor"]
Follow = Callable[["Step", "MessageGuidance", Prediction, int, "Tensor | None"], Prediction]


def message_guidance(stage: Stage) -> tuple[MessageGuidance, ...] | None:
    """Return the stage's guidance, none or one, if it works by messages; None if it does not."""
    speaking = tuple(g for g in stage.guidance if speaks(g) and points_of(g) == ("views",))
    return speaking if len(speaking) == len(stage.guidance) < 2 else None


def ranks_are_independent(plan: RunPlan, step: Step) -> bool:
    """Whether a step's stage needs no collectives, so that each rank can advance its own views, unobserved."""
    phase = plan.phase(step)
    if plan.regions or plan.hooks.watches_canvas or not phase.stepper.works_by_cell:
        return False  # with regions a view has more rows than another
    steps = [each for each in plan.steps() if (each.phase, each.stage) == (step.phase, step.stage)]
    if len({plan.views_branches(each) for each in steps}) > 1:
        return False  # rows, and with them the owners of views, would change on the way
    return are_independent(plan.stage(step), phase.canvas, (plan.patches(each)[0] for each in steps))


def are_independent(stage: Stage, canvas: Canvas, every: Iterable[Patches]) -> bool:
    """Whether a stage's views need only messages of each other.

    Args:
        stage: The stage.
        canvas: The canvas that the views must partition.
        every: The patches of its steps.
    """
    if stage.extra_views or message_guidance(stage) is None or not OptionalFusion.of(stage.fusion).is_local:
        return False
    if (
        stage.remember
        or OptionalMasking.of(stage.masking).knows_whole
        or has_own(stage.patching, OptionalPatching.prepare)
    ):
        return False
    views: tuple[View, ...] | None = None
    for patches in every:
        cells = len(patches.views) * math.prod(patches.views[0].shape)
        parts = cells == canvas.height * canvas.width and patches.permutation is None and not patches.clean_key
        if not parts or patches.views != (views or patches.views):
            return False
        views = patches.views
    return views is not None


@define(eq=False)
class IndependentRanks:
    """One rank's part in a stage without collectives.

    Attributes:
        exchange: The ranks.
        patches: The views, the same at every step.
        guidance: The guidance by messages, if any.
        branches: CFG branches of every view.
        first_step: First step of the stage in this run; messages are counted from it.
        told: The message before that, if the run was resumed from a checkpoint.
        channel: Carries the messages.
        owners: Ranks of the micro-batches, once known.
        row_batch: Rows of a micro-batch; the last may have fewer.
        device: Device for messages, once the channel is open.
    """

    exchange: Exchange
    patches: Patches
    guidance: MessageGuidance | None
    branches: tuple[Branch, ...]
    first_step: int
    resumed_message: Tensor | None = None
    channel: Channel | None = None
    owners: tuple[int, ...] = ()
    row_batch: int = 1
    device: torch.device | None = None

    def view_owners(self) -> list[int]:
        """Return the rank of every view."""
        return [self.owners[view * len(self.branches) // self.row_batch] for view in range(len(self.patches.views))]

    def predict(
        self,
        step: Step,
        latents: Tensor,
        batches: Sequence[MicroBatch],
        forward: Callable[[MicroBatch], ModelOutput],
        combine: Combine,
        tell: Tell,
        follow: Follow,
    ) -> Prediction:
        """Predict this rank's views, the key view first, and guide them by the message.

        Args:
            step: Position of the run.
            latents: The canvas, of which this rank's cells are valid.
            batches: All micro-batches, in canonical order.
            forward: One forward of the network.
            combine: Apply classifier-free guidance to outputs, Float32[Tensor, "views batch channels h w"].
            tell: Make the key view's message from its prediction.
            follow: Correct all views but the key view by a message.

        Returns:
            The prediction of all views, of which this rank's are valid.
        """
        if not self.owners:
            self._share_out(batches)
        key, rank = self.patches.key, self.exchange.communicator.rank
        answers = [ModelOutput(rows.model_input.new_zeros(rows.model_input.shape)) for rows in batches]
        key_units = [unit for unit, rows in enumerate(batches) if self.patches.views[key] in rows.views]
        rest = [unit for unit in range(len(batches)) if unit not in key_units]
        views = Prediction(gather_views(latents, self.patches.views), latents, step)
        if self._lag(step) is not None and self.channel is None:
            self._open(step, views.latents)
        for unit in (unit for unit in key_units if self.owners[unit] == rank):
            answers[unit] = forward(batches[unit])
        if self.guidance is not None and self._lag(step) is not None:
            message = None
            if self.owners[key_units[0]] == rank:
                key_prediction = evolve(views, latents=views.latents[key], model_output=combine(answers)[key])
                seen = next((a for a in answers if a.attention is not None), answers[key_units[0]])
                message = tell(self.guidance, key_prediction, seen)
            assert self.channel is not None
            self.channel.publish(step.index - self.first_step, message)
        for unit in (unit for unit in rest if self.owners[unit] == rank):
            answers[unit] = forward(batches[unit])
        views = evolve(views, model_output=combine(answers))
        return views if self.guidance is None else follow(step, self.guidance, views, key, self.message(step))

    def _lag(self, step: Step) -> int | None:
        """Return the age of the message that a step follows; None if it follows none."""
        if self.guidance is None:
            return None
        asked = StrategyCall("guidance", self.guidance, step)
        with asked.noted():
            lag = self.guidance.lag(step)
        return check_lag(asked, lag)

    def message(self, step: Step) -> Tensor | None:
        """Return the message that a step follows, of exactly the age that the guidance's ``lag`` gives."""
        lag = self._lag(step)
        if lag is None:
            return None
        version = step.index - self.first_step - lag
        return self._fetch(version) if version >= 0 else self.resumed_message

    def last_message(self, step: Step) -> Tensor | None:
        """Return the message made at a step, for a checkpoint."""
        return None if self._lag(step) is None else self._fetch(step.index - self.first_step)

    def gather(self, tensors: Sequence[Tensor]) -> None:
        """Complete canvases that are valid in this rank's cells, in place; collective.

        Args:
            tensors: Float32[Tensor, "batch channels height width"] each.
        """
        views, communicator = self.patches.views, self.exchange.communicator
        owners = self.view_owners()
        cut = {
            (i, v, p): tensor[..., piece.rows, piece.cols]
            for i, tensor in enumerate(tensors)
            for v, view in enumerate(views)
            for p, piece in enumerate(view.pieces)
        }
        owner = {key: owners[key[1]] for key in cut}
        mine = {key: part for key, part in cut.items() if owner[key] == communicator.rank}
        communicator.all_gather_into(cut, mine, owner)

    def _share_out(self, batches: Sequence[MicroBatch]) -> None:
        self.row_batch = len(batches[0].views)
        self.owners = whole_views(batches, self.exchange.speeds, len(self.branches), self.patches.key)

    def _open(self, step: Step, views: Tensor) -> None:
        """Open the channel before any forward, since that is collective and the owner may be steps ahead."""
        batch, channels, height, width = views.shape[1:]
        self.device = views.device
        self.channel = self.exchange.communicator.channel(
            f"phase {step.phase} stage {step.stage}",
            src=self.view_owners()[self.patches.key],
            shape=(batch, channels + 1, height, width),
            dtype=views.dtype,
            max_staleness=AHEAD,
        )

    def _fetch(self, version: int) -> Tensor:
        assert self.channel is not None
        return self.channel.fetch(version).to(self.device)
