"""Methods as data: stages with strategies, validated before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_items, later
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.attention_maps import AttentionRequest, Kind, kind_of
from vitrail.core.method.calls import Naming, StrategyCall, unnamed
from vitrail.core.method.cascade import Cascade, Finish
from vitrail.core.method.members import OPTIONAL, ReadsFiles, recalls
from vitrail.core.method.registration import unknown_need
from vitrail.core.method.returned_values import check_digest, check_granularity
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
    """A sampling method: the stages, each with the share of the steps that it takes."""

    stages: tuple[Stage, ...] = field(converter=as_items, validator=_some)  # in the order in which they run
    cascade: Cascade | None = None  # sizes before the wanted one
    finish: Finish | None = later(default=None)  # sampled smaller, decoded, then enlarged

    def __attrs_post_init__(self) -> None:
        refuse_unsound(self.stages, self.cascade, self.finish)
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
        if self.cascade is not None and self.finish is not None and self.finish.factor is None:
            raise ValueError(
                "'finish' without a factor samples at the training size, from which a 'cascade' could not grow; give "
                "finish.factor, or leave one out"
            )
        refuse(self.stages, self.groups())

    def groups(self) -> list[tuple[int, ...]]:
        """Return the numbers of the stages of each size; every further group begins with an ``enter``."""
        begins = [number for number, stage in enumerate(self.stages) if number == 0 or stage.enter is not None]
        return [tuple(range(*ends)) for ends in pairwise((*begins, len(self.stages)))]

    def boundaries(self, num_steps: int, group: int = 0) -> tuple[int, ...]:
        """Return the first step after each stage of a group, rounded half up; a stage of no steps is skipped."""
        return tuple(math.floor(self.stages[number].until * num_steps + 0.5) for number in self.groups()[group])

    def pad(self, canvas: Canvas, num_steps: int, group: int = 0, named: Naming = unnamed) -> Canvas:
        """Return the canvas padded to a common multiple of the granularities of a group's patchings.

        Args:
            canvas: The canvas of the picture.
            num_steps: Steps at this size; stages without steps do not count.
            group: Index into ``groups``.
            named: Look-up of registered names, for messages.

        Raises:
            ConfigError: If an axis whose ends meet would have to be padded.
        """
        ends = (0, *self.boundaries(num_steps, group))
        stages = [self.stages[number] for number in self.groups()[group]]
        used = [stage for stage, begin, end in zip(stages, ends, ends[1:], strict=False) if end > begin]
        patchings = [
            each for stage in used for each in (stage.patching, *(group.patching for group in stage.extra_views))
        ]
        asked = [(StrategyCall("patching", each, named=named), each) for each in patchings]
        pairs = [check_granularity(call, call.ask(each.granularity, canvas)) for call, each in asked]
        return canvas.padded(math.lcm(*(h for h, _ in pairs)), math.lcm(*(w for _, w in pairs)))

    def attention_request(self) -> AttentionRequest | None:
        """Return the attention maps that the stages need, or None.

        Raises:
            CompositionError: If stages need different maps.
        """
        asking = [each.request for stage in self.stages for each in (stage.masking, stage.prompting)]
        wanted = [request for request in asking if request is not None]
        kinds: list[Kind] = [request.kind for request in wanted if request.kind != "text"]
        requests = {  # maps of whichever kind are those of the kind that another stage names
            evolve(request, each=False, kind=kinds[0] if kinds and request.kind == "text" else request.kind)
            for request in wanted
        }
        if len(requests) > 1:
            raise CompositionError(f"stages want different attention maps: {sorted(map(str, requests))}; use one")
        request = next(iter(requests), None)
        remembers = any(stage.remember for stage in self.stages)
        if request is None:
            return AttentionRequest(each=True) if remembers else None
        return evolve(request, each=remembers)

    def places(self) -> Iterator[Place]:
        """Yield every strategy with its slot and its path in the method."""
        for index, stage in enumerate(self.stages):
            yield from places(index, stage)
        if self.finish is not None:
            yield Place("finish.upscaler", "upscaler", self.finish.upscaler)

    @property
    def packages(self) -> frozenset[str]:
        """Top-level packages of the strategies, without Vitrail's own."""
        modules = {type(place.strategy).__module__ for place in self.places()}
        return frozenset(module.partition(".")[0] for module in modules) - {"vitrail"}

    def check_files(self, named: Naming = unnamed) -> None:
        """Refuse strategies whose files are missing or broken.

        Args:
            named: Look-up of registered names, for messages.

        Raises:
            ConfigError: Listing every such strategy and its path.
        """
        problems = Problems()
        for place in self.places():
            if place.slot != "rectification":  # whose check needs a network
                with problems.collect():
                    try:
                        place.call(named).ask(ReadsFiles.of(place.strategy).check)
                    except (VitrailError, OSError) as error:
                        raise ConfigError(f"{place.path}: {error}") from error
        problems.tell()

    def digests(self, named: Naming = unnamed) -> dict[str, str]:
        """Return digests of the files that strategies read, by the path of the strategy.

        Args:
            named: Look-up of registered names, for messages.

        Raises:
            ShapeError: If a strategy returns anything but a text.
        """
        found: dict[str, str] = {}
        for place in self.places():
            call = place.call(named)
            found[place.path] = check_digest(call, call.ask(OPTIONAL[place.slot].of(place.strategy).digest))
        return {path: digest for path, digest in found.items() if digest}

    @property
    def needs(self) -> frozenset[str]:
        """Everything that the method's strategies need of a backbone."""
        own = {"vae"} if any(s.enter is not None and s.enter.resize == "pixels" for s in self.stages) else set()
        maps = {"attention-maps"} if any(s.remember for s in self.stages) else set()
        return frozenset().union(own, maps, *(place.strategy.needs for place in self.places()))

    def check(self, offers: frozenset[str], backbone: str, known: Registry | None = None) -> None:
        """Refuse a backbone that lacks what a strategy needs.

        Args:
            offers: Capabilities of the backbone.
            backbone: Name of the backbone in the message.
            known: Registry whose strategies the message suggests instead.

        Raises:
            CapabilityError: Naming every affected strategy, what it needs and what would serve instead.
        """
        problems = []
        for place in self.places():
            for need in sorted(place.strategy.needs - offers):
                reason = unknown_need(need, _offered(known)) or f"needs {need!r}{_served(place.slot, offers, known)}"
                problems.append(f"{place.path}: {type(place.strategy).__name__} {reason}")
        for index, stage in enumerate(self.stages):
            problems += _blocks_of_another_network(index, stage, kind_of(offers))
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


def _blocks_of_another_network(index: int, stage: Stage, kind: Kind) -> list[str]:
    """Return what is wrong with a mask source whose choice of blocks this kind of attention has no use for."""
    request = stage.masking.request
    if request is None or request.kind != "text":
        return []
    if kind == "joint" and request.layers and not request.blocks:
        return [
            f"stages.{index}.masking: 'layers' are up blocks of a U-Net, and this is a transformer; name its 'blocks'"
        ]
    if kind == "cross" and request.blocks and not request.layers:
        return [f"stages.{index}.masking: 'blocks' are those of a transformer, and this is a U-Net; name its 'layers'"]
    return []


def _offered(known: Registry | None) -> frozenset[str]:
    """Return what the registered backbones offer, all taken together."""
    entries = known.entries("backbones") if known is not None else []
    return frozenset(offer for entry in entries for offer in entry.declared("offers"))


def _served(slot: str, offers: frozenset[str], known: Registry | None) -> str:
    """Return the part of a message that lists the strategies of a slot that a backbone with these offers can serve."""
    entries = known.entries(slot) if known is not None else []
    alone = [entry for entry in entries if not recalls(entry.value)]  # others need an earlier stage
    names = [entry.name for entry in alone if entry.declared("needs") <= offers]
    return f"; {' or '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} would do" if names else ""
