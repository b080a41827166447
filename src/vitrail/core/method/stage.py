"""A stage: a range of steps with one set of strategies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS, as_items, as_tuple, later, share
from vitrail.core.method.calls import Naming, StrategyCall, unnamed
from vitrail.core.method.cascade import Enter
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.protocols import Fusion, Guidance, Masking, Patching, Prompting, Rectification, Upscaler
from vitrail.core.schedule.step import Ramp

if TYPE_CHECKING:
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.schedule.step import Step


Strategy = Patching | Fusion | Masking | Prompting | Guidance | Rectification | Upscaler


@frozen
class SharedPrompt:
    """Give every view the run's prompt."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def request(self) -> None:
        """None: it needs no attention maps."""
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
        """Return (): no view has a text of its own. For the arguments see ``Prompting.texts``."""
        return ()


@frozen(kw_only=True)
class Repeat:
    """Do every timestep again after its noise was added again, so that parts that do not agree can settle.

    The resampling of RePaint (Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865), sec. 4.2, as ElasticDiffusion
    (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822) takes it: all timesteps but the last of a size. Only for
    schedulers whose step is a function of timestep and latents, which excludes multistep ones.
    """

    times: int = field(default=1, validator=v.ge(0))  # how often a timestep is done again; 0 is off
    guidance_factor: float = field(default=1.0, validator=v.gt(0))  # multiplies the guidance scale when it is


@frozen(kw_only=True)
class ViewGroup:
    """A further group of views in the same step; the canvas's prediction is a weighted mean of all groups."""

    patching: Patching  # which views the network sees
    fusion: Fusion  # how their predictions become the canvas's
    weight: float = field(default=0.5, validator=share)  # share of this group
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the weight over the stage
    power: float = field(default=1.0, validator=v.ge(0))  # exponent of the ramp


def _interval(stage: object, attribute: attrs.Attribute[tuple[float, ...]], value: tuple[float, ...]) -> None:
    """Refuse what is no interval of noise levels."""
    rises = list(value) == sorted(value) and all(level >= 0 and math.isfinite(level) for level in value)
    if len(value) > 2 or not rises:
        raise ValueError(
            f"{attribute.name}: expected two noise levels with 0 <= low <= high, as in [0.28, 5.42], or the low one "
            f"alone, got {list(value)}"
        )


@frozen(kw_only=True)
class Stage:
    """A range of steps with one set of strategies.

    ``guidance_interval`` is that of Kynkaanniemi et al., 2024, https://arxiv.org/abs/2404.07724, sec. 3: guidance
    acts in the middle of the noise levels alone, which leaves half of the network's rows elsewhere.
    """

    patching: Patching  # which views the network sees
    fusion: Fusion  # how their predictions become the canvas's
    masking: Masking  # where guidance acts; in a file "none" if unset
    prompting: Prompting = field(factory=SharedPrompt)  # which text each view gets
    enter: Enter | None = None  # begins with the picture so far, resized to the next size
    guidance: tuple[Guidance, ...] = field(default=(), converter=as_items)  # corrections of predictions or latents
    extra_views: tuple[ViewGroup, ...] = field(default=(), converter=as_items)  # further view groups
    rectification: tuple[Rectification, ...] = field(default=(), converter=as_items)  # changes inside the network
    sizes: SizeConditioning = field(factory=SizeConditioning)  # size conditioning of the network
    guidance_factor: float = field(default=1.0, validator=v.gt(0))  # multiplies the run's guidance scale
    guidance_interval: tuple[float, ...] = later(
        default=(), converter=as_tuple, validator=_interval
    )  # of noise levels sigma / alpha, (low, high], or [low] with all above; elsewhere no "uncond" is asked. () for all
    repeat: Repeat | None = later(default=None)  # do every timestep more than once, its noise added again in between
    remember: bool = False  # keep the mean of its attention maps, word by word, for later stages
    scale_batch: int | None = field(
        default=None, validator=v.optional(v.ge(1))
    )  # reproduces the authors' bug: views after this many, and all further groups, are scaled for the next step
    unscaled_start: bool = later(
        default=False
    )  # reproduces another one: at the first step of a larger size those many are not scaled
    until: float = field(default=1.0, validator=share)  # end of the stage, as a fraction of the steps at its size

    def __attrs_post_init__(self) -> None:
        groups = self.extra_views if isinstance(self.extra_views, tuple) else ()
        if sum(group.weight for group in groups if isinstance(group, ViewGroup)) > 1:
            raise ValueError("the weights in 'extra_views' add up to more than 1; the main group takes what is left")
        if self.unscaled_start and (self.scale_batch is None or self.enter is None):
            raise ValueError(
                "'unscaled_start' is about the first 'scale_batch' views of a stage with 'enter'; set both, or leave "
                "it out"
            )

    def is_guided(self, step: Step) -> bool:
        """Whether classifier-free guidance, if it is on, acts at a step of this stage."""
        if not self.guidance_interval:
            return True
        low, high = (*self.guidance_interval, math.inf)[:2]
        return low < step.noise_level <= high

    def factor_at(self, step: Step) -> float:
        """Return what multiplies the run's guidance scale at a step of this stage."""
        again = self.repeat.guidance_factor if self.repeat is not None and step.repeat else 1.0
        return self.guidance_factor * again

    @property
    def repeats(self) -> int:
        """How often every timestep is done again."""
        return 0 if self.repeat is None else self.repeat.times

    def strategies(self) -> Iterator[tuple[str, Strategy]]:
        """Yield every strategy with the slot that it fills."""
        yield from (("patching", self.patching), ("fusion", self.fusion), ("masking", self.masking))
        yield "prompting", self.prompting
        for guidance in self.guidance:
            yield "guidance", guidance
        for rectification in self.rectification:
            yield "rectification", rectification
        for group in self.extra_views:
            yield from (("patching", group.patching), ("fusion", group.fusion))
        if self.enter is not None and self.enter.upscaler is not None:
            yield "upscaler", self.enter.upscaler


@frozen
class Place:
    """A strategy and its path in the method.

    Attributes:
        path: Path as in a file, e.g. ``stages.0.guidance.1``.
        slot: Slot that it fills.
        strategy: The strategy, not yet validated.
    """

    path: str
    slot: str
    strategy: Strategy

    def call(self, named: Naming = unnamed) -> StrategyCall:
        """Return a call of the strategy before a run, for messages."""
        return StrategyCall(self.slot, self.strategy, named=named)


def places(index: int, stage: Stage) -> Iterator[Place]:
    """Yield every strategy of a stage with its path, in the order of the stage's fields.

    Args:
        index: Number of the stage in its method.
        stage: A stage whose list fields are known to be sequences.
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
    if isinstance(stage.enter, Enter) and stage.enter.upscaler is not None:
        yield Place(f"{path}.enter.upscaler", "upscaler", stage.enter.upscaler)
