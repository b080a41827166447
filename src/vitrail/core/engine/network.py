"""Forwards of one picture's network: conditioned, rectified, and rolled where the canvas wraps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.calls import Naming, StrategyCall, unnamed
from vitrail.core.method.members import OptionalRectification
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.method.protocols import Forward
from vitrail.core.method.returned_values import check_context
from vitrail.core.schedule.rescheduling import reread
from vitrail.errors import CapabilityError, Problems

if TYPE_CHECKING:
    from vitrail.core.engine.conditioning_cache import Conditions
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.composition import Composition
    from vitrail.core.method.micro_batch import Branch, MicroBatch
    from vitrail.core.method.protocols import Rectification
    from vitrail.core.schedule.phase import Phase
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Groups = list[tuple[tuple[int, ...], list[int]]]  # (numbers of rectifications, rows that they act on)


@frozen(eq=False)
class Network:
    """Predict the micro-batches of one picture.

    Attributes:
        backbone: The model; without rectifications its network is not accessed.
        composition: Gives the rectifications of each stage.
        phases: Their schedulers give the timesteps.
        conditions: The picture's conditioning, encoded at the first forward, so that planning costs nothing.
        streams: The run's random streams.
        named: Look-up of registered names, for messages.
    """

    backbone: Backbone
    composition: Composition
    phases: tuple[Phase, ...] = field(converter=as_tuple)
    conditions: Conditions
    streams: Streams
    named: Naming = unnamed

    def predict(self, step: Step, rows: MicroBatch) -> ModelOutput:
        """Compute one micro-batch, in parts if its rows have different rectifications.

        Args:
            step: Position of the run.
            rows: Rows of views with the same ``roll``.
        """
        conditioning = self.conditions.of(step, rows)
        phase = self.phases[step.phase]
        timestep = phase.stepper.timestep(step)
        rectifications = self.composition.stages[step.stage].rectification
        groups = _groups(rectifications, rows)
        answers = []
        for numbers, chosen in groups:
            part = rows if len(groups) == 1 else rows.pick(chosen)
            with ExitStack() as stack:
                for number in numbers:
                    self._rectify(stack, step, rectifications[number], part)
                answer = unrolled(self.backbone.predict(rolled(part), step, timestep, conditioning), part)
            said = reread(answer.model_output, part.model_input, step, phase.gamma)
            answers.append(answer if said is answer.model_output else evolve(answer, model_output=said))
        return answers[0] if len(groups) == 1 else _rejoined(answers, groups)

    def _rectify(self, stack: ExitStack, step: Step, rectification: Rectification, part: MicroBatch) -> None:
        """Apply a rectification until the stack unwinds."""
        forward = Forward(
            network=self.backbone.network,
            step=step,
            rows=part,
            native_size=self.backbone.native_size,
            streams=self.streams,
        )
        asked = StrategyCall("rectification", rectification, step, self.named)
        with asked.noted():
            stack.enter_context(check_context(asked, rectification.apply(forward)))


def check_rectifications(composition: Composition, backbone: Backbone, named: Naming = unnamed) -> None:
    """Refuse rectifications that do not fit the network, before it is called.

    Args:
        composition: The method.
        backbone: The model.
        named: Look-up of registered names, for messages.

    Raises:
        VitrailError: Listing every such rectification and its path in the method.
    """
    problems = Problems()
    for index, stage in enumerate(composition.stages):
        for number, rectification in enumerate(stage.rectification):
            with problems.collect():
                try:
                    StrategyCall("rectification", rectification, named=named).ask(rectification.check, backbone.network)
                except CapabilityError as error:
                    raise CapabilityError(f"stages.{index}.rectification.{number}: {error}") from error
    problems.tell()


def _groups(rectifications: Sequence[Rectification], rows: MicroBatch) -> Groups:
    """Group the rows of a micro-batch by the rectifications that act on them."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, branch in enumerate(rows.branches):
        found.setdefault(_acting(rectifications, branch), []).append(row)
    return list(found.items())


def _acting(rectifications: Sequence[Rectification], branch: Branch) -> tuple[int, ...]:
    """Return the numbers of the rectifications that act on rows of a branch."""
    chosen = (OptionalRectification.of(rectification).branches for rectification in rectifications)
    return tuple(number for number, branches in enumerate(chosen) if not branches or branch in branches)


def _rejoined(answers: Sequence[ModelOutput], groups: Groups) -> ModelOutput:
    """Join the outputs of the groups, in the order of the rows."""
    joined = ModelOutput.join(answers)
    order = [row for _, rows in groups for row in rows]
    entries = joined.model_output.view(len(order), -1, *joined.model_output.shape[1:])
    back = sorted(range(len(order)), key=order.__getitem__)
    return evolve(joined, model_output=entries[back].flatten(0, 1))


def rolled(rows: MicroBatch) -> MicroBatch:
    """Roll views by their ``roll``, so that zero padding in the network does not meet the canvas's wrapped edge.

    Everything before and after, messages between steps included, uses views that are not rolled.
    """
    down, right = rows.views[0].roll
    if down == right == 0:
        return rows
    shown = rows.model_input.roll((-down, -right), (-2, -1))
    return evolve(rows, model_input=shown, views=[view.rolled for view in rows.views])


def unrolled(answer: ModelOutput, rows: MicroBatch) -> ModelOutput:
    """Roll the output of rolled views back."""
    down, right = rows.views[0].roll
    if down == right == 0:
        return answer
    attention = answer.attention
    layers = {block: each.roll((down, right), (-2, -1)) for block, each in answer.layers.items()}
    return evolve(
        answer,
        model_output=answer.model_output.roll((down, right), (-2, -1)),
        attention=None if attention is None else attention.roll((down, right), (-2, -1)),
        layers=layers,
        words=None if answer.words is None else answer.words.roll((down, right), (-2, -1)),
    )
