"""Whether a method put together in Python is one: every place holds what belongs there, all problems at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from vitrail.core.geometry.size_conditioning import SizeConditioning
from vitrail.core.method.cascade import Cascade, Enter
from vitrail.core.method.registration import misfits, odd_values
from vitrail.errors import CompositionError, shortened

if TYPE_CHECKING:
    from vitrail.core.method.composition import Stage

MAPS = {"cross": "attention-maps", "joint": "joint-attention-maps"}  # need of a request for attention maps


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
    for number, family in enumerate(stage.also):
        yield Place(f"{path}.also.{number}.patching", "patching", family.patching)
        yield Place(f"{path}.also.{number}.fusion", "fusion", family.fusion)


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
    from vitrail.core.method.composition import Stage

    if not isinstance(stages, tuple):
        yield f"stages: expected a list of stages, got {told(stages)}"
        return
    if cascade is not None and not isinstance(cascade, Cascade):
        yield f"cascade: expected a Cascade, got {told(cascade)}"
    for index, stage in enumerate(stages):
        if isinstance(stage, Stage):
            yield from _of_stage(index, stage)
        else:
            yield f"stages.{index}: expected a Stage, got {told(stage)}"


def _of_stage(index: int, stage: Stage) -> Iterator[str]:
    from vitrail.core.method.composition import Family

    path, lists = f"stages.{index}", True
    for name in ("guidance", "rectification", "also"):
        if not isinstance(getattr(stage, name), tuple):
            yield f"{path}.{name}: expected a list, got {told(getattr(stage, name))}; put [ ] around it"
            lists = False
    for name, kind in (("enter", Enter), ("sizes", SizeConditioning), ("remember", bool)):
        value = getattr(stage, name)
        if not isinstance(value, kind) and not (name == "enter" and value is None):
            yield f"{path}.{name}: expected {_a(kind.__name__)}, got {told(value)}"
    if not lists:
        return
    strange = [number for number, family in enumerate(stage.also) if not isinstance(family, Family)]
    for number in strange:
        yield f"{path}.also.{number}: expected a Family, got {told(stage.also[number])}"
    if not strange:
        for place in places(index, stage):
            yield from (f"{place.path}: {text}" for text in _of_place(place))


def _of_place(place: Place) -> Iterator[str]:
    """What is wrong with a strategy where it stands."""
    slot, strategy, kind = place.slot, place.strategy, cast("Any", type(place.strategy))
    if isinstance(strategy, type):
        yield f"{strategy.__name__} is a class; give an instance, {strategy.__name__}(...)"
    elif isinstance(strategy, (str, Mapping, Sequence)) or strategy is None:
        yield f"expected a {slot} strategy, got {told(strategy)}; names and tables belong in a method's file or table"
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


def told(value: object) -> str:
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
