"""A stage's rectifications around the calls of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from attrs import evolve

from vitrail.core.method.calls import Asked, Naming, unnamed
from vitrail.core.method.members import OptionalRectification
from vitrail.core.method.protocols import Forward, Predicted
from vitrail.core.method.returned_values import check_context
from vitrail.errors import CapabilityError, Problems

if TYPE_CHECKING:
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.composition import Composition
    from vitrail.core.method.protocols import Branch, Rectification, Rows
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


def check_rectifications(composition: Composition, backbone: Backbone) -> None:
    """Refuse what the network cannot take, before it is called.

    Raises:
        VitrailError: With every rectification that does not fit, and where it stands in the method.
    """
    problems = Problems()
    for index, stage in enumerate(composition.stages):
        for number, rectification in enumerate(stage.rectification):
            with problems.collect():
                try:
                    rectification.check(backbone.network)
                except CapabilityError as error:
                    raise CapabilityError(f"stages.{index}.rectification.{number}: {error}") from error
    problems.tell()


def predict_rectified(
    rectifications: Sequence[Rectification],
    backbone: Backbone,
    step: Step,
    rows: Rows,
    streams: Streams,
    predict: Callable[[Rows], Predicted],
    named: Naming = unnamed,
) -> Predicted:
    """A micro-batch through the rectified network, in parts if not all rows see the same changes.

    Args:
        rectifications: Of the stage.
        backbone: The model; without rectifications its network is not even looked at.
        step: Where the run stands.
        rows: The micro-batch.
        streams: The run's randomness.
        predict: The forward.
        named: Knows registered names, for messages.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, branch in enumerate(rows.branches):
        groups.setdefault(_acting(rectifications, branch), []).append(row)
    answers = []
    for numbers, chosen in groups.items():
        part = rows if len(groups) == 1 else rows.pick(chosen)
        with ExitStack() as stack:
            for number in numbers:
                forward = Forward(
                    network=backbone.network,
                    step=step,
                    rows=part,
                    native_size=backbone.native_size,
                    streams=streams,
                )
                asked = Asked("rectification", rectifications[number], step, named)
                with asked.noted():
                    stack.enter_context(check_context(asked, rectifications[number].apply(forward)))
            answers.append(predict(part))
    return answers[0] if len(groups) == 1 else _rejoined(answers, list(groups.values()))


def _acting(rectifications: Sequence[Rectification], branch: Branch) -> tuple[int, ...]:
    """Numbers of those that act on rows of a branch."""
    chosen = (OptionalRectification.of(rectification).branches for rectification in rectifications)
    return tuple(number for number, branches in enumerate(chosen) if not branches or branch in branches)


def _rejoined(answers: Sequence[Predicted], groups: Sequence[Sequence[int]]) -> Predicted:
    """What the parts say, in the order of the rows."""
    joined = Predicted.join(answers)
    order = [row for rows in groups for row in rows]
    entries = joined.model_output.view(len(order), -1, *joined.model_output.shape[1:])
    back = sorted(range(len(order)), key=order.__getitem__)
    return evolve(joined, model_output=entries[back].flatten(0, 1))
