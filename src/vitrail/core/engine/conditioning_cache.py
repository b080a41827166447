"""What the network is conditioned on, encoded when it is first wanted, once for every text and hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve, field

if TYPE_CHECKING:
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import Backbone, OpaqueConditioning
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step


@define(eq=False)
class Conditions:
    """The conditioning of one picture, at every size it grows through.

    Attributes:
        backbone: Encodes.
        inputs: What it is made from, by phase.
        request: The attention maps wanted, if any.
    """

    backbone: Backbone
    inputs: Sequence[Inputs]
    request: AttentionRequest | None
    _made: dict[int, OpaqueConditioning] = field(factory=dict)
    _texts: dict[int, set[str]] = field(factory=dict)

    def of(self, step: Step, rows: MicroBatch) -> OpaqueConditioning:
        """What the rows of a step are conditioned on, with all of their texts."""
        phase = self._phase(step)
        self.at(step)
        for text in {text for text in rows.texts if text is not None} - self._texts[phase]:
            self._made[phase] = self.backbone.also(self._made[phase], evolve(self.inputs[phase], prompt=text))
            self._texts[phase].add(text)
        return self._made[phase]

    def at(self, step: Step) -> OpaqueConditioning:
        """What a step is conditioned on, with the run's prompt."""
        phase = self._phase(step)
        if phase not in self._made:
            self._made[phase] = self.backbone.condition(self.inputs[phase], self.request)
            self._texts[phase] = set()
        return self._made[phase]

    def _phase(self, step: Step) -> int:
        """Which conditioning counts; a hint has another size in every phase."""
        return step.phase if self._lies_on_the_picture else 0

    @property
    def _lies_on_the_picture(self) -> bool:
        return self.inputs[0].extras.control_image is not None
