"""A stage: a range of steps with one set of strategies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS, as_items, share
from vitrail.core.method.cascade import Enter
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.protocols import Fusion, Guidance, Masking, Patching, Prompting, Rectification
from vitrail.core.schedule.step import Ramp

if TYPE_CHECKING:
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.schedule.step import Step


@frozen
class SharedPrompt:
    """The prompt, for every view."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def request(self) -> None:
        """No maps."""
        return None

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[()]:
        """None of their own."""
        return ()


@frozen(kw_only=True)
class ViewGroup:
    """A further set of views in the same step, mixed into the canvas's prediction by a weight."""

    patching: Patching  # which views the network sees
    fusion: Fusion  # how their predictions become the canvas's
    weight: float = field(default=0.5, validator=share)  # share of this group
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the weight
    power: float = field(default=1.0, validator=v.ge(0))  # of the ramp


@frozen(kw_only=True)
class Stage:
    """A range of steps with one set of strategies."""

    patching: Patching  # which views the network sees
    fusion: Fusion  # how their predictions become the canvas's
    masking: Masking  # where guidance acts; in a file "none" if unset
    prompting: Prompting = field(factory=SharedPrompt)  # which text each view gets
    enter: Enter | None = None  # begins on the picture so far, at the next size
    guidance: tuple[Guidance, ...] = field(default=(), converter=as_items)  # corrections of predictions or latents
    extra_views: tuple[ViewGroup, ...] = field(default=(), converter=as_items)  # further view groups
    rectification: tuple[Rectification, ...] = field(default=(), converter=as_items)  # changes inside the network
    sizes: SizeConditioning = field(factory=SizeConditioning)  # what a network is told about sizes
    guidance_factor: float = field(default=1.0, validator=v.gt(0))  # times the run's guidance scale
    remember: bool = False  # keep the mean of its attention maps, word by word, for later stages
    scale_batch: int | None = field(
        default=None, validator=v.optional(v.ge(1))
    )  # authors' bug, off if unset: views after so many, and all further groups, are scaled for the next step
    until: float = field(default=1.0, validator=share)  # fraction of the steps that are done at its size

    def __attrs_post_init__(self) -> None:
        groups = self.extra_views if isinstance(self.extra_views, tuple) else ()
        if sum(group.weight for group in groups if isinstance(group, ViewGroup)) > 1:
            raise ValueError("the weights in 'extra_views' add up to more than 1; the main group takes what is left")

    def strategies(self) -> Iterator[tuple[str, Any]]:
        """Every strategy with the slot it fills."""
        yield from (("patching", self.patching), ("fusion", self.fusion), ("masking", self.masking))
        yield "prompting", self.prompting
        for guidance in self.guidance:
            yield "guidance", guidance
        for rectification in self.rectification:
            yield "rectification", rectification
        for group in self.extra_views:
            yield from (("patching", group.patching), ("fusion", group.fusion))


@frozen
class Place:
    """A strategy and where it stands.

    Attributes:
        path: As in a file, e.g. ``stages.0.guidance.1``.
        slot: That it fills.
        strategy: Whatever stands there.
    """

    path: str
    slot: str
    strategy: Any


def places(index: int, stage: Stage) -> Iterator[Place]:
    """Every strategy of a stage, in the order of its fields.

    Args:
        index: Of the stage in its method.
        stage: Whose lists are lists.
    """
    path = f"stages.{index}"
    for slot in ("patching", "fusion", "masking", "prompting"):
        yield Place(f"{path}.{slot}", slot, getattr(stage, slot))
    for slot in ("guidance", "rectification"):
        for number, strategy in enumerate(getattr(stage, slot)):
            yield Place(f"{path}.{slot}.{number}", slot, strategy)
    for number, group in enumerate(stage.extra_views):
        yield Place(f"{path}.extra_views.{number}.patching", "patching", group.patching)
        yield Place(f"{path}.extra_views.{number}.fusion", "fusion", group.fusion)
