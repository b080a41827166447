"""Where the ends of an axis meet, a network that pads with zeros must not always find its edge at the same cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import evolve

if TYPE_CHECKING:
    from vitrail.core.method.protocols import Predicted, Rows


def predict_turned(rows: Rows, forward: Callable[[Rows], Predicted]) -> Predicted:
    """Show the network every view from its cell ``turn`` on, and put what it says back in the views' own order.

    All that comes before and after, messages between steps among it, knows views that stay where they are.

    Args:
        rows: Of views that are turned alike.
        forward: The network; the rows it gets say where their cells lie.
    """
    down, right = rows.views[0].turn
    if down == right == 0:
        return forward(rows)
    shown = rows.model_input.roll((-down, -right), (-2, -1))
    answer = forward(evolve(rows, model_input=shown, views=[view.turned for view in rows.views]))
    attention = answer.attention
    layers = {block: each.roll((down, right), (-2, -1)) for block, each in answer.layers.items()}
    return evolve(
        answer,
        model_output=answer.model_output.roll((down, right), (-2, -1)),
        attention=None if attention is None else attention.roll((down, right), (-2, -1)),
        layers=layers,
        words=None if answer.words is None else answer.words.roll((down, right), (-2, -1)),
    )
