"""Conditioning of the network, encoded on first use, once per text and hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve, field

if TYPE_CHECKING:
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import Backbone, OpaqueConditioning
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch, TextKey
    from vitrail.core.schedule.step import Step


@define(eq=False)
class Conditions:
    """The conditioning of one picture, at every size it grows through.

    Attributes:
        backbone: Encodes the inputs.
        inputs: The inputs of each phase.
        request: Attention maps to capture, if any.
    """

    backbone: Backbone
    inputs: Sequence[Inputs]
    request: AttentionRequest | None
    _made: dict[int, OpaqueConditioning] = field(factory=dict)
    _texts: dict[int, set[TextKey]] = field(factory=dict)

    def of(self, step: Step, rows: MicroBatch) -> OpaqueConditioning:
        """Return the conditioning of a step, with all texts of the rows."""
        phase = self._phase(step)
        self.at(step)
        for key in dict.fromkeys(rows.asked_with):
            prompt, negative = key
            if prompt is not None and key not in self._texts[phase]:
                inputs = evolve(self.inputs[phase], prompt=prompt)
                inputs = inputs if negative is None else evolve(inputs, negative_prompt=negative)
                self._made[phase] = self.backbone.also(self._made[phase], inputs)
                self._texts[phase].add(key)
        return self._made[phase]

    def at(self, step: Step) -> OpaqueConditioning:
        """Return the conditioning of a step, with the run's prompt."""
        phase = self._phase(step)
        if phase not in self._made:
            self._made[phase] = self.backbone.condition(self.inputs[phase], self.request)
            self._texts[phase] = set()
        return self._made[phase]

    def _phase(self, step: Step) -> int:
        """Return the phase whose conditioning applies; only a control image differs between phases."""
        return step.phase if self._lies_on_the_picture else 0

    @property
    def _lies_on_the_picture(self) -> bool:
        return self.inputs[0].extras.control_image is not None
