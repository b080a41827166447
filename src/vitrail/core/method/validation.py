"""Validation of a method when it is put together, before anything is loaded.

Every place holds what belongs there, and no stage says what would be ignored or would mean something else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vitrail.core.method.cascade import Cascade, Enter
from vitrail.core.method.members import OptionalGuidance, OptionalMasking, OptionalPatching, has_own, recalls
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.registration import misfits, odd_values
from vitrail.core.method.stage import Place, Stage, ViewGroup, places
from vitrail.errors import CompositionError, shortened

if TYPE_CHECKING:
    from vitrail.core.method.protocols import Guidance

MAPS = {"cross": "attention-maps", "joint": "joint-attention-maps"}  # need of a request for attention maps


def refuse_unsound(stages: Sequence[Any], cascade: Any) -> None:
    """Refuse what is no method.

    Args:
        stages: What stands for them.
        cascade: What stands for it.

    Raises:
        CompositionError: Listing every problem with its path.
    """
    problems = list(_problems(stages, cascade))
    if problems:
        raise CompositionError("this method cannot work:\n  " + "\n  ".join(problems))


def _problems(stages: Sequence[Any], cascade: Any) -> Iterator[str]:
    if not isinstance(stages, tuple):
        yield f"stages: expected a list of stages, got {described(stages)}"
        return
    if cascade is not None and not isinstance(cascade, Cascade):
        yield f"cascade: expected a Cascade, got {described(cascade)}"
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
    for name, kind in (("enter", Enter), ("sizes", SizeConditioning), ("remember", bool)):
        value = getattr(stage, name)
        if not isinstance(value, kind) and not (name == "enter" and value is None):
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
    """What is wrong with a strategy where it stands."""
    slot, strategy, kind = place.slot, place.strategy, cast("Any", type(place.strategy))
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
            values = {"needs": strategy.needs, "point": strategy.point if slot == "guidance" else None}
            found = tuple(odd_values(slot, type(strategy).__name__, values))
        yield from found
        if not found and slot in ("masking", "prompting") and strategy.request is not None:
            need = MAPS[strategy.request.kind]
            if need not in strategy.needs:
                yield f"{type(strategy).__name__} requests attention maps; declare the need {need!r}"


@functools.lru_cache(256)
def _misfits(slot: str, cls: type) -> tuple[str, ...]:
    return tuple(misfits(slot, cls, named=False))


def described(value: object) -> str:
    """A value in a message."""
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
    """Refuse what would be ignored, or would do something else than it says.

    Args:
        stages: Of a method, in turn.
        groups: Numbers of the stages that are done at one size, for every size.

    Raises:
        ValueError: With the stage, what is wrong there, why, and what to do.
    """
    _refuse_startless(stages, groups)
    _refuse_without_picture(stages, groups)
    _refuse_forgotten(stages)
    for index, stage in enumerate(stages):
        _refuse_exclusive(index, stage)
        _refuse_parts_remembered(index, stage)
        _refuse_unread(index, stage)
        _refuse_unprepared(index, stage)


def _name(strategy: object) -> str:
    return type(strategy).__name__


def _reads_mask(guidance: Guidance) -> bool:
    return OptionalGuidance.of(guidance).reads_mask


def _shows_whole(stage: Stage) -> bool:
    return OptionalPatching.of(stage.patching).shows_whole


def _refuse_exclusive(index: int, stage: Stage) -> None:
    """Only one guidance of a stage can say how the CFG branches are combined."""
    names = [_name(guidance) for guidance in stage.guidance if guidance.point == "branches"]
    if len(names) > 1:
        raise ValueError(f"stages.{index}: {' and '.join(names)} both say how branches are combined; keep one")


def _refuse_startless(stages: Sequence[Stage], groups: Sequence[Sequence[int]]) -> None:
    """What follows the picture of the size before needs one before."""
    for index in groups[0]:
        names = [_name(g) for g in stages[index].guidance if OptionalGuidance.of(g).follows_start]
        if names:
            raise ValueError(
                f"stages.{index}: {names[0]} follows the picture of the size before, and the first size has none, so "
                "it would do nothing; put it into a stage with 'enter' or after one (a method with a 'cascade'), or "
                "leave it out"
            )


def _refuse_without_picture(stages: Sequence[Stage], groups: Sequence[Sequence[int]]) -> None:
    """What compares with the grown picture needs one."""
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
    """What looks at remembered maps needs an earlier stage that remembers."""
    remembers = False
    for index, stage in enumerate(stages):
        for slot, strategy in (("masking", stage.masking), ("prompting", stage.prompting)):
            if recalls(strategy) and not remembers:
                raise ValueError(f"stages.{index}.{slot}: no earlier stage has 'remember = true'; the first one could")
        remembers = remembers or stage.remember


def _refuse_parts_remembered(index: int, stage: Stage) -> None:
    """What is remembered is the map of the whole picture."""
    if stage.remember and not _shows_whole(stage):
        raise ValueError(
            f"stages.{index}.remember: the maps of one view are kept as those of the picture, and a view of "
            f'{_name(stage.patching)} shows a part of it; remember in a stage with patching = "whole" or "lattice"'
        )


def _refuse_unread(index: int, stage: Stage) -> None:
    """A mask beside guidance is one that the guidance reads; without any guidance it is there to be looked at."""
    masking, acting = stage.masking, [g for g in stage.guidance if not OptionalGuidance.of(g).is_idle]
    if not acting or OptionalMasking.of(masking).is_everywhere:
        return
    what = f"stages.{index}.masking: {_name(masking)}"
    readers = [guidance for guidance in acting if _reads_mask(guidance)]
    if not readers:
        names = " and ".join(map(_name, acting))
        reads = "reads" if len(acting) == 1 else "read"
        raise ValueError(f'{what} would be ignored, since {names} {reads} no mask; set masking = "none"')
    blind = [_name(g) for g in readers if g.point == "canvas" and not OptionalMasking.of(masking).knows_whole]
    if blind:
        raise ValueError(
            f"{what} would be ignored by {blind[0]}: it is of the key view, and {blind[0]} guides the canvas; set "
            'masking to one that knows the whole picture, such as "remembered-attention", or to "none"'
        )


def _refuse_unprepared(index: int, stage: Stage) -> None:
    """What changes the canvas before its views are read does not reach views with latents of their own."""
    movers = [_name(guidance) for guidance in stage.guidance if guidance.point == "inputs"]
    if movers and has_own(stage.patching, OptionalPatching.prepare):
        raise ValueError(
            f"stages.{index}.patching: {_name(stage.patching)} changes the canvas before its views are read, but "
            f'{movers[0]} gives every view latents of its own; use patching = "windows" or "lattice" beside it'
        )
