"""A method as data: stages with strategies, checked for fit before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.fields import RAMPS, as_tuple, share
from vitrail.core.protocols import AttentionRequest, Fusion, Guidance, Masking, Patching, Rectification
from vitrail.core.sizes import SizeConditioning
from vitrail.core.step import Ramp
from vitrail.core.views import Canvas
from vitrail.errors import CapabilityError, CompositionError

if TYPE_CHECKING:
    from vitrail.core.registry import Registry


@frozen(kw_only=True)
class Family:
    """A further set of views in the same step, mixed into the canvas's prediction by a weight."""

    patching: Patching
    fusion: Fusion
    weight: float = field(default=0.5, validator=share)  # share of this family
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))


@frozen(kw_only=True)
class Stage:
    """A range of steps with one set of strategies."""

    patching: Patching
    fusion: Fusion
    masking: Masking
    guidance: tuple[Guidance, ...] = field(default=(), converter=as_tuple)
    also: tuple[Family, ...] = field(default=(), converter=as_tuple)  # further view families
    rectification: tuple[Rectification, ...] = field(default=(), converter=as_tuple)  # changes inside the network
    sizes: SizeConditioning = field(factory=SizeConditioning)  # what a network is told about sizes
    until: float = field(default=1.0, validator=share)  # fraction of the run's steps

    def __attrs_post_init__(self) -> None:
        if sum(family.weight for family in self.also) > 1:
            raise ValueError("the weights in 'also' add up to more than 1; the main family takes what is left")

    def strategies(self) -> Iterator[tuple[str, Any]]:
        """Every strategy with the slot it fills."""
        yield from (("patching", self.patching), ("fusion", self.fusion), ("masking", self.masking))
        for guidance in self.guidance:
            yield "guidance", guidance
        for rectification in self.rectification:
            yield "rectification", rectification
        for family in self.also:
            yield from (("patching", family.patching), ("fusion", family.fusion))


@frozen(kw_only=True)
class Composition:
    """A sampling method: what to do in which share of the steps."""

    stages: tuple[Stage, ...] = field(converter=as_tuple, validator=v.min_len(1))

    def __attrs_post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        if ends != sorted(ends) or ends[-1] != 1.0:
            raise ValueError(f"'until' must not fall from stage to stage and the last must be 1.0, got {ends}")

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """First step after each stage; a stage of no steps is skipped. Half steps round up."""
        return tuple(math.floor(stage.until * num_steps + 0.5) for stage in self.stages)

    def pad(self, canvas: Canvas, num_steps: int) -> Canvas:
        """The canvas padded to multiples that every patching of the run can live with."""
        ends = (0, *self.boundaries(num_steps))
        used = [stage for stage, begin, end in zip(self.stages, ends, ends[1:], strict=False) if end > begin]
        pairs = [s.granularity(canvas) for stage in used for slot, s in stage.strategies() if slot == "patching"]
        return canvas.padded(math.lcm(*(h for h, _ in pairs)), math.lcm(*(w for _, w in pairs)))

    def attention_request(self) -> AttentionRequest | None:
        """The attention maps that any stage wants; all stages must agree."""
        requests = {stage.masking.request for stage in self.stages} - {None}
        if len(requests) > 1:
            raise CompositionError(f"stages want different attention maps: {sorted(map(str, requests))}; use one")
        return next(iter(requests), None)

    def check(self, offers: frozenset[str], backbone: str, known: Registry | None = None) -> None:
        """Refuse a backbone that cannot serve a strategy.

        Args:
            offers: Of the backbone.
            backbone: What to call it.
            known: Whose strategies to name instead.

        Raises:
            CapabilityError: Naming every strategy in need, what it needs and what would do.
        """
        problems = []
        for index, stage in enumerate(self.stages):
            for slot, strategy in stage.strategies():
                for need in sorted(strategy.needs - offers):
                    instead = _served(slot, offers, known)
                    problems.append(f"stages.{index}.{slot}: {type(strategy).__name__} needs {need!r}{instead}")
        if problems:
            raise CapabilityError(
                f"{backbone} offers {', '.join(sorted(offers)) or 'nothing'}, but\n  "
                + "\n  ".join(problems)
                + "\nChoose another strategy for the slot (`vitrail methods` lists them) or another model."
            )


def _served(slot: str, offers: frozenset[str], known: Registry | None) -> str:
    """Which registered strategies of a slot a backbone with these offers can serve, to be added to a message."""
    entries: list[Any] = known.entries(slot) if known is not None else []
    names = [entry.name for entry in entries if entry.value.needs <= offers]
    return f"; {' or '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} would do" if names else ""
