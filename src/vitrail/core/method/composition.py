"""A method as data: stages with strategies, checked for fit before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_items
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.cascade import Cascade
from vitrail.core.method.members import OPTIONAL, ReadsFiles, recalls
from vitrail.core.method.registration import unknown_need
from vitrail.core.method.returned_values import check_granularity
from vitrail.core.method.stage import Place, Stage, places
from vitrail.core.method.validation import refuse, refuse_unsound
from vitrail.errors import CapabilityError, CompositionError, ConfigError, Problems, VitrailError

if TYPE_CHECKING:
    from vitrail.core.config.registry import Registry


def _some(instance: object, attribute: object, stages: object) -> None:
    if stages == ():
        raise ValueError("must have 1 or more entries, got 0")


@frozen(kw_only=True)
class Composition:
    """A sampling method: what to do in which share of the steps."""

    stages: tuple[Stage, ...] = field(converter=as_items, validator=_some)  # in turn
    cascade: Cascade | None = None  # the sizes before the wanted one

    def __attrs_post_init__(self) -> None:
        refuse_unsound(self.stages, self.cascade)
        if self.stages[0].enter is not None:
            raise ValueError("the first stage begins with noise, so it cannot have 'enter'")
        if (self.cascade is None) != (len(self.groups()) == 1):
            raise ValueError("a 'cascade' and stages with 'enter' need each other: one says the sizes, one how to grow")
        for group in self.groups():
            ends = [self.stages[number].until for number in group]
            if ends != sorted(ends) or ends[-1] != 1.0:
                raise ValueError(
                    f"'until' must not fall from stage to stage and the last of a size must be 1.0, got {ends}"
                )
        refuse(self.stages, self.groups())

    def groups(self) -> list[tuple[int, ...]]:
        """Numbers of the stages that are done at one size; each further group begins with an ``enter``."""
        begins = [number for number, stage in enumerate(self.stages) if number == 0 or stage.enter is not None]
        return [tuple(range(*ends)) for ends in pairwise((*begins, len(self.stages)))]

    def boundaries(self, num_steps: int, group: int = 0) -> tuple[int, ...]:
        """First step after each stage of a group; a stage of no steps is skipped. Half steps round up."""
        return tuple(math.floor(self.stages[number].until * num_steps + 0.5) for number in self.groups()[group])

    def pad(self, canvas: Canvas, num_steps: int, group: int = 0) -> Canvas:
        """The canvas padded to multiples that every patching of a group can live with."""
        ends = (0, *self.boundaries(num_steps, group))
        stages = [self.stages[number] for number in self.groups()[group]]
        used = [stage for stage, begin, end in zip(stages, ends, ends[1:], strict=False) if end > begin]
        patchings = [s for stage in used for slot, s in stage.strategies() if slot == "patching"]
        pairs = [check_granularity(StrategyCall("patching", each), each.granularity(canvas)) for each in patchings]
        return canvas.padded(math.lcm(*(h for h, _ in pairs)), math.lcm(*(w for _, w in pairs)))

    def attention_request(self) -> AttentionRequest | None:
        """The attention maps that any stage wants; all stages must agree."""
        wanted = [each.request for stage in self.stages for each in (stage.masking, stage.prompting)]
        requests = {evolve(request, each=False) for request in wanted if request is not None}
        if len(requests) > 1:
            raise CompositionError(f"stages want different attention maps: {sorted(map(str, requests))}; use one")
        request = next(iter(requests), None)
        remembers = any(stage.remember for stage in self.stages)
        if request is None:
            return AttentionRequest(each=True) if remembers else None
        return evolve(request, each=remembers)

    def places(self) -> Iterator[Place]:
        """Every strategy with its slot and where it stands."""
        for index, stage in enumerate(self.stages):
            yield from places(index, stage)

    def check_files(self) -> None:
        """Refuse strategies whose files are missing or broken.

        Raises:
            ConfigError: With every such strategy and where it stands.
        """
        problems = Problems()
        for place in self.places():
            if place.slot != "rectification":  # theirs look at a network
                with problems.collect():
                    try:
                        ReadsFiles.of(place.strategy).check()
                    except (VitrailError, OSError) as error:
                        raise ConfigError(f"{place.path}: {error}") from error
        problems.tell()

    def digests(self) -> dict[str, str]:
        """What stands for the contents of the files that strategies read, by where the strategy stands."""
        found = {place.path: OPTIONAL[place.slot].of(place.strategy).digest() for place in self.places()}
        return {path: digest for path, digest in found.items() if digest}

    @property
    def needs(self) -> frozenset[str]:
        """What all strategies together need of a backbone."""
        own = {"vae"} if any(s.enter is not None and s.enter.resize == "pixels" for s in self.stages) else set()
        maps = {"attention-maps"} if any(s.remember for s in self.stages) else set()
        return frozenset().union(own, maps, *(s.needs for stage in self.stages for _, s in stage.strategies()))

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
            for place in places(index, stage):
                for need in sorted(place.strategy.needs - offers):
                    reason = (
                        unknown_need(need, _offered(known)) or f"needs {need!r}{_served(place.slot, offers, known)}"
                    )
                    problems.append(f"{place.path}: {type(place.strategy).__name__} {reason}")
            if stage.enter is not None and stage.enter.resize == "pixels" and "vae" not in offers:
                problems.append(f"stages.{index}.enter: resize = 'pixels' needs 'vae'; 'latents' would do")
            if stage.remember and "attention-maps" not in offers:
                problems.append(f"stages.{index}.remember: needs 'attention-maps'")
        if problems:
            raise CapabilityError(
                f"{backbone} offers {', '.join(sorted(offers)) or 'nothing'}, but\n  "
                + "\n  ".join(problems)
                + "\nChoose another strategy for the slot (`vitrail methods` lists them) or another model."
            )


def _offered(known: Registry | None) -> frozenset[str]:
    """What any registered backbone offers."""
    entries: list[Any] = known.entries("backbones") if known is not None else []
    return frozenset(offer for entry in entries for offer in entry.value.offers)


def _served(slot: str, offers: frozenset[str], known: Registry | None) -> str:
    """Which registered strategies of a slot a backbone with these offers can serve, to be added to a message."""
    entries: list[Any] = known.entries(slot) if known is not None else []
    alone = [entry for entry in entries if not recalls(entry.value)]  # others need an earlier stage
    names = [entry.name for entry in alone if entry.value.needs <= offers]
    return f"; {' or '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} would do" if names else ""
