"""Validation of a method when it is composed, before anything is loaded.

Every slot must hold a strategy that fits, and no setting may be ignored or mean something else than it says.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from vitrail.core.method.attention_maps import NEEDS_OF_KINDS, AttentionRequest
from vitrail.core.method.cascade import Cascade, Enter, Finish
from vitrail.core.method.members import (
    OptionalGuidance,
    OptionalMasking,
    OptionalPatching,
    combines_branches,
    has_own,
    points_of,
    recalls,
)
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.registration import misfits, odd_values
from vitrail.core.method.stage import Place, Repeat, Stage, ViewGroup, places
from vitrail.errors import CompositionError, shortened

if TYPE_CHECKING:
    from vitrail.core.method.protocols import Guidance, Masking, Prompting


def refuse_unsound(stages: Sequence[object], cascade: object, finish: object = None) -> None:
    """Refuse stages, a cascade or a finish of the wrong types.

    Args:
        stages: Value of the method's ``stages``, not yet validated.
        cascade: Value of the method's ``cascade``, not yet validated.
        finish: Value of its ``finish``, not yet validated.

    Raises:
        CompositionError: Listing every problem with its path.
    """
    problems = list(_problems(stages, cascade, finish))
    if problems:
        raise CompositionError("this method cannot work:\n  " + "\n  ".join(problems))


def _problems(stages: Sequence[object], cascade: object, finish: object) -> Iterator[str]:
    if not isinstance(stages, tuple):
        yield f"stages: expected a list of stages, got {described(stages)}"
        return
    if cascade is not None and not isinstance(cascade, Cascade):
        yield f"cascade: expected a Cascade, got {described(cascade)}"
    if isinstance(finish, Finish):
        place = Place("finish.upscaler", "upscaler", finish.upscaler)
        yield from (f"{place.path}: {text}" for text in _of_place(place))
    elif finish is not None:
        yield f"finish: expected a Finish, got {described(finish)}"
    for index, stage in enumerate(stages):
        if isinstance(stage, Stage):
            yield from _of_stage(index, stage)
        else:
            yield f"stages.{index}: expected a Stage, got {described(stage)}"


def _of_stage(index: int, stage: Stage) -> Iterator[str]:
    path, lists = f"stages.{index}", True
    for name in ("guidance", "rectification", "extra_views"):
        if not isinstance(getattr(stage, name), tuple):
            yield f"{path}.{name}: expected a list, got {described(getattr(stage, name))}; put [ ] around it"
            lists = False
    for name, kind in (("enter", Enter), ("repeat", Repeat), ("sizes", SizeConditioning), ("remember", bool)):
        value = getattr(stage, name)
        if not isinstance(value, kind) and not (name in ("enter", "repeat") and value is None):
            yield f"{path}.{name}: expected {_a(kind.__name__)}, got {described(value)}"
    if not lists:
        return
    strange = [number for number, group in enumerate(stage.extra_views) if not isinstance(group, ViewGroup)]
    for number in strange:
        yield f"{path}.extra_views.{number}: expected a ViewGroup, got {described(stage.extra_views[number])}"
    if not strange:
        for place in places(index, stage):
            yield from (f"{place.path}: {text}" for text in _of_place(place))


def _of_place(place: Place) -> Iterator[str]:
    """Yield what is wrong with a strategy in its place."""
    slot, strategy = place.slot, place.strategy
    kind: type = type(strategy)
    if isinstance(strategy, type):
        yield f"{strategy.__name__} is a class; give an instance, {strategy.__name__}(...)"
    elif isinstance(strategy, (str, Mapping, Sequence)) or strategy is None:
        yield (
            f"expected a {slot} strategy, got {described(strategy)}; names and tables belong in a method's file or "
            "table"
        )
    else:
        found = _misfits(slot, kind)
        if not found:
            values = {
                "needs": strategy.needs,
                "point": cast("Guidance", strategy).point if slot == "guidance" else None,
            }
            found = tuple(odd_values(slot, type(strategy).__name__, values))
        yield from found
        if not found and slot in ("masking", "prompting"):
            request: object = cast("Masking | Prompting", strategy).request
            if not isinstance(request, (AttentionRequest, type(None))):
                yield f"{type(strategy).__name__}.request must be an AttentionRequest or None, got {described(request)}"
            elif request is not None and NEEDS_OF_KINDS[request.kind] not in strategy.needs:
                need = NEEDS_OF_KINDS[request.kind]
                yield f"{type(strategy).__name__} requests attention maps; declare the need {need!r}"


@functools.lru_cache(256)
def _misfits(slot: str, cls: type) -> tuple[str, ...]:
    return tuple(misfits(slot, cls, named=False))


def described(value: object) -> str:
    """Describe a value in a message."""
    if isinstance(value, str):
        return f"the text {shortened(value)!r}"
    if isinstance(value, Mapping):
        return "a table"
    if value is None:
        return "nothing"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _a(type(value).__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def refuse(stages: Sequence[Stage], groups: Sequence[Sequence[int]]) -> None:
    """Refuse settings that would be ignored, or would do something else than they say.

    Args:
        stages: Stages of a method, in order.
        groups: Numbers of the stages of each size.

    Raises:
        ValueError: With the stage, what is wrong there, why, and what to do.
    """
    _refuse_startless(stages, groups)
    _refuse_without_picture(stages, groups)
    _refuse_forgotten(stages)
    for index, stage in enumerate(stages):
        _refuse_exclusive(index, stage)
        _refuse_unasked(index, stage)
        _refuse_parts_remembered(index, stage)
        _refuse_parts_followed(index, stage)
        _refuse_unread(index, stage)
        _refuse_unprepared(index, stage)


def _name(strategy: object) -> str:
    return type(strategy).__name__


def _reads_mask(guidance: Guidance) -> bool:
    return OptionalGuidance.of(guidance).reads_mask


def _shows_whole(stage: Stage) -> bool:
    return OptionalPatching.of(stage.patching).shows_whole


def _refuse_exclusive(index: int, stage: Stage) -> None:
    """Refuse two guidances of one stage that both combine the CFG branches."""
    names = [_name(guidance) for guidance in stage.guidance if combines_branches(guidance)]
    if len(names) > 1:
        raise ValueError(f"stages.{index}: {' and '.join(names)} both say how branches are combined; keep one")
    if names and stage.guidance_interval:
        raise ValueError(
            f"stages.{index}.guidance_interval: {names[0]} combines both branches at every step, and outside of the "
            "interval there is one; leave one of them out"
        )


def _refuse_unasked(index: int, stage: Stage) -> None:
    """Refuse what is about the text of views that a guidance leaves without their conditional branch."""
    names = [_name(g) for g in stage.guidance if "cond" not in (OptionalGuidance.of(g).views_branches or ("cond",))]
    if not names:
        return
    reading = {
        "masking": stage.masking.request is not None,
        "remember": stage.remember,
        "prompting": stage.prompting.request is not None or recalls(stage.prompting),
    }
    for name in (each for each, reads in reading.items() if reads):
        raise ValueError(
            f"stages.{index}.{name}: it is about how views see the prompt, and {names[0]} has them asked without it; "
            "leave one of them out"
        )


def _refuse_startless(stages: Sequence[Stage], groups: Sequence[Sequence[int]]) -> None:
    """Refuse guidance by the picture of the size before in the first size."""
    for index in groups[0]:
        names = [_name(g) for g in stages[index].guidance if OptionalGuidance.of(g).follows_start]
        if names:
            raise ValueError(
                f"stages.{index}: {names[0]} follows the picture of the size before, and the first size has none, so "
                "it would do nothing; put it into a stage with 'enter' or after one (a method with a 'cascade'), or "
                "leave it out"
            )


def _refuse_without_picture(stages: Sequence[Stage], groups: Sequence[Sequence[int]]) -> None:
    """Refuse guidance by the resized picture where latents are resized."""
    for group in groups:
        enter = stages[group[0]].enter
        for index in group if enter is not None and enter.resize != "pixels" else ():
            names = [_name(g) for g in stages[index].guidance if OptionalGuidance.of(g).compares_pictures]
            if names:
                raise ValueError(
                    f"stages.{index}: {names[0]} compares with the grown picture, but latents grow to this size; "
                    'set enter.resize = "pixels"'
                )


def _refuse_forgotten(stages: Sequence[Stage]) -> None:
    """Refuse strategies that need kept attention maps if no earlier stage keeps them."""
    remembers = False
    for index, stage in enumerate(stages):
        for slot, strategy in (("masking", stage.masking), ("prompting", stage.prompting)):
            if recalls(strategy) and not remembers:
                raise ValueError(f"stages.{index}.{slot}: no earlier stage has 'remember = true'; the first one could")
        remembers = remembers or stage.remember


def _refuse_parts_remembered(index: int, stage: Stage) -> None:
    """Refuse keeping maps of a view that shows a part of the picture, since they are used as the picture's."""
    if stage.remember and not _shows_whole(stage):
        raise ValueError(
            f"stages.{index}.remember: the maps of one view are kept as those of the picture, and a view of "
            f'{_name(stage.patching)} shows a part of it; remember in a stage with patching = "whole" or "lattice"'
        )


def _refuse_parts_followed(index: int, stage: Stage) -> None:
    """Refuse guidance that reads the key view between its cells where views show parts of the picture."""
    names = [_name(guidance) for guidance in stage.guidance if OptionalGuidance.of(guidance).interpolates_key]
    if names and not _shows_whole(stage):
        raise ValueError(
            f"stages.{index}: {names[0]} reads the key view between its cells, and the views of "
            f'{_name(stage.patching)} show other parts of the picture; use patching = "lattice", or guide by "sync"'
        )


def _refuse_unread(index: int, stage: Stage) -> None:
    """Refuse a mask that no guidance reads; without any guidance a mask is there for observers."""
    masking, acting = stage.masking, [g for g in stage.guidance if not OptionalGuidance.of(g).is_idle]
    if not acting or OptionalMasking.of(masking).is_everywhere:
        return
    what = f"stages.{index}.masking: {_name(masking)}"
    readers = [guidance for guidance in acting if _reads_mask(guidance)]
    if not readers:
        names = " and ".join(map(_name, acting))
        reads = "reads" if len(acting) == 1 else "read"
        raise ValueError(f'{what} would be ignored, since {names} {reads} no mask; set masking = "none"')
    blind = [_name(g) for g in readers if "canvas" in points_of(g) and not OptionalMasking.of(masking).knows_whole]
    if blind:
        raise ValueError(
            f"{what} would be ignored by {blind[0]}: it is of the key view, and {blind[0]} guides the canvas; set "
            'masking to one that knows the whole picture, such as "remembered-attention", or to "none"'
        )


def _refuse_unprepared(index: int, stage: Stage) -> None:
    """Refuse a patching that changes the canvas beside guidance that gives views latents of their own."""
    movers = [_name(guidance) for guidance in stage.guidance if "inputs" in points_of(guidance)]
    if movers and has_own(stage.patching, OptionalPatching.prepare):
        raise ValueError(
            f"stages.{index}.patching: {_name(stage.patching)} changes the canvas before its views are read, but "
            f'{movers[0]} gives every view latents of its own; use patching = "windows" or "lattice" beside it'
        )
