"""Whether a class fits its slot: its required, optional and unknown members, and their signatures."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args
from weakref import WeakKeyDictionary

import attrs

from vitrail.core.method.backbone import BackboneAdapter
from vitrail.core.method.members import ABSENT, OPTIONAL, NamesFiles, OptionalBackend, OptionalFeatureExtractor
from vitrail.core.method.metric import FeatureExtractor, Features, Metric, References
from vitrail.core.method.protocols import (
    Fusion,
    Guidance,
    Masking,
    MessageGuidance,
    Patching,
    Point,
    Prompting,
    Rectification,
    Upscaler,
)
from vitrail.errors import nearest

PROTOCOLS: dict[str, type] = {
    "patching": Patching,
    "guidance": Guidance,
    "masking": Masking,
    "fusion": Fusion,
    "prompting": Prompting,
    "rectification": Rectification,
    "upscaler": Upscaler,
    "metrics": Metric,
    "features": Features,
    "references": References,
    "backbones": BackboneAdapter,
}
OTHERS: dict[str, tuple[str, ...]] = {  # slots without strategies: the required members of a class
    "comm": ("run",),
}
READ_IF_THERE: dict[str, tuple[type, ...]] = {  # slots without strategies: classes that list their optional members
    "comm": (OptionalBackend,),
    "features": (OptionalFeatureExtractor, NamesFiles),
    "metrics": (OptionalFeatureExtractor, FeatureExtractor, NamesFiles),  # a metric may be its own extractor
    "references": (NamesFiles,),
}
NEEDS = frozenset(  # known needs of strategies; a registered backbone may offer more
    {
        "attention-maps",
        "convolutions",
        "cross-attention",
        "cross-attention-maps",
        "gradients",
        "joint-attention-maps",
        "self-attention",
        "unet-skips",
        "vae",
    }
)
SLOTS = (*OPTIONAL, "backbones", *OTHERS, "metrics", "features", "references")
MISSPELT = 0.8  # similarity (difflib) of two names from which on one is taken for the other
OF_CLASSES = ("needs", "point")  # read from the class, before there is an instance
_SOUND: WeakKeyDictionary[type, set[tuple[str, bool]]] = WeakKeyDictionary()  # classes that were found to fit
MESSAGES = tuple(name for name in vars(MessageGuidance) if not name.startswith("_"))


def _public(cls: type) -> list[str]:
    """Return the public members that a class itself declares, methods last."""
    listed = dict.fromkeys((*inspect.get_annotations(cls), *vars(cls)))
    return [name for name in listed if not name.startswith("_")]


@functools.cache
def required(slot: str) -> tuple[str, ...]:
    """Return the members that a class of a slot must have."""
    return OTHERS[slot] if slot in OTHERS else tuple(_public(PROTOCOLS[slot]))


@functools.cache
def optional(slot: str) -> dict[str, object]:
    """Return the members that a class of a slot may have, with their defaults; a method is its own default."""
    found: dict[str, object] = {name: vars(MessageGuidance)[name] for name in MESSAGES} if slot == "guidance" else {}
    for cls in (*READ_IF_THERE.get(slot, ()), *(OPTIONAL[slot].__mro__ if slot in OPTIONAL else ())):
        found = {name: value for name, value in vars(cls).items() if not name.startswith("_") and name != "of"} | found
    return found


def slots_of(cls: type) -> list[str]:
    """Return the strategy slots whose required members a class has, those with the most members first."""
    fitting = [slot for slot in OPTIONAL if all(_has(cls, name) for name in required(slot))]
    return sorted(fitting, key=lambda slot: -len(required(slot)))


def misfits(slot: str, cls: type, named: bool = True) -> list[str]:
    """Return what keeps a class from filling a slot, one text per problem; empty if it fits.

    Args:
        slot: One of ``SLOTS``.
        cls: Class of a strategy, metric, backbone or communicator.
        named: Whether the class is to be registered under a name; ``needs`` and ``point`` of other classes may differ
            between instances, see ``odd_values``.
    """
    if (slot, named) in _SOUND.get(cls, ()):
        return []
    found = _misfits(slot, cls, named)
    if not found:
        _SOUND.setdefault(cls, set()).add((slot, named))
    return found


def _misfits(slot: str, cls: type, named: bool) -> list[str]:
    name, missing = cls.__name__, [member for member in required(slot) if not _has(cls, member)]
    if missing:
        others = [other for other in slots_of(cls) if other != slot]
        hint = f"; it is a {others[0]}" if others else _hint(slot, cls, missing)
        return [f"{name} lacks {', '.join(missing)}{hint}"]
    found = [] if _is_frozen(cls) else [f"{name} must be a frozen attrs class (decorate with @frozen)"]
    if slot in PROTOCOLS:
        protocol = PROTOCOLS[slot]
        wanted = {member: vars(protocol)[member] for member in required(slot) if member in vars(protocol)}
        found += [text for member, like in wanted.items() for text in _unlike(cls, member, like)]
    if slot == "backbones":
        found += _odd_adapter(cls)
    if slot in OPTIONAL:
        found += [*(_of_class(slot, cls) if named else ()), *_odd_options(slot, cls), *_strangers(slot, cls)]
    return [*found, *_odd_paths(slot, cls), *_misspelt(slot, cls)]


def path_options(cls: type) -> tuple[str, ...]:
    """Return the options of a class that are paths; see ``members.NamesFiles``."""
    declared: tuple[str, ...] = inspect.getattr_static(cls, "path_options", ())
    return declared


def unknown_need(need: str, offers: Iterable[str] = ()) -> str:
    """Return the error text for a need that nothing offers; "" for a known one.

    Args:
        need: Need of a strategy.
        offers: Offers of all registered backbones.
    """
    known = {*NEEDS, *offers}
    return "" if need in known else f"needs {need!r}, which no model offers{nearest(need, known)}"


def _has(cls: type, name: str) -> bool:
    """Whether instances have a member; a field of a class without slots is not an attribute of the class."""
    return inspect.getattr_static(cls, name, ABSENT) is not ABSENT or name in fields_of(cls)


def fields_of(cls: type) -> set[str]:
    """Return the names of a class's options; empty if it is no attrs class."""
    return {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()


def _hint(slot: str, cls: type, missing: list[str]) -> str:
    """Suggest which of the class's own names may be misspelt members."""
    own = [n for n in _own(cls) if n not in required(slot) and n not in optional(slot)]
    meant = [(m, nearest(m, own).partition("'")[2].partition("'")[0]) for m in missing if "did you" in nearest(m, own)]
    return "".join(f"; {given!r} should be {wanted!r}" for wanted, given in meant)


def _own(cls: type) -> list[str]:
    """Return public names of a class and its bases, without fields and without the classes that declare members."""
    above = [each for each in cls.__mro__ if each is not object and each not in _declaring()]
    names = dict.fromkeys(name for each in above for name in vars(each) if not name.startswith("_"))
    return [name for name in names if name not in fields_of(cls)]


@functools.cache
def _declaring() -> frozenset[type]:
    return frozenset(each for cls in (*OPTIONAL.values(), *PROTOCOLS.values()) for each in cls.__mro__)


def odd_values(slot: str, name: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yield what is wrong with the values of the members that every strategy has.

    Args:
        slot: Slot of the strategy.
        name: Name of its class.
        values: ``needs`` and ``point``, from the class or from an instance.
    """
    needs, point = values.get("needs"), values.get("point")
    if not (isinstance(needs, (set, frozenset)) and all(isinstance(need, str) for need in needs)):
        yield f'{name}.needs must be a frozenset of texts, e.g. frozenset({{"vae"}}), got {needs!r}'
    if slot == "guidance" and point not in get_args(Point):
        meant = nearest(str(point), get_args(Point)).partition(";")[0]
        yield f"{name}.point must be one of {', '.join(get_args(Point))}, got {point!r}{meant}"


def _of_class(slot: str, cls: type) -> Iterator[str]:
    """Yield what is wrong with members that must be class attributes, since they are read before instantiation."""
    values = {member: inspect.getattr_static(cls, member, None) for member in OF_CLASSES}
    fields = [member for member in OF_CLASSES if member in fields_of(cls) and member in required(slot)]
    for member in fields:
        yield f"{cls.__name__}.{member} is a field, so a file could change it; annotate it as ClassVar"
    if not fields:
        yield from odd_values(slot, cls.__name__, values)


def _odd_adapter(cls: type) -> Iterator[str]:
    """Yield what is wrong with members of an adapter that are read or called on the class."""
    values = {name: inspect.getattr_static(cls, name, None) for name in ("pipelines", "offers", "defaults", "adopt")}
    for name, kinds, wanted in (
        ("pipelines", tuple, 'a tuple of names of pipeline classes, e.g. ("StableDiffusionPipeline",)'),
        ("offers", (set, frozenset), 'a frozenset of texts, e.g. frozenset({"vae"})'),
    ):
        value = values[name]
        if not isinstance(value, kinds) or not all(isinstance(each, str) for each in value):
            yield f"{cls.__name__}.{name} must be {wanted}, got {value!r}"
    if not isinstance(values["defaults"], Mapping):
        yield f"{cls.__name__}.defaults must be a mapping of fields of a run, got {values['defaults']!r}"
    if inspect.isfunction(values["adopt"]):
        yield f"{cls.__name__}.adopt is called on the class; decorate it with @classmethod"


def _odd_options(slot: str, cls: type) -> Iterator[str]:
    """Yield the optional members that are present with a wrong type or signature."""
    for member, default in optional(slot).items():
        if not _has(cls, member):
            continue
        if inspect.isfunction(default):
            yield from _unlike(cls, member, default)
            continue
        value = inspect.getattr_static(cls, member, default)
        if member not in fields_of(cls) and not isinstance(value, (property, type(default))):
            yield f"{cls.__name__}.{member} must be a {type(default).__name__}, got {value!r}"
    if slot == "guidance":
        yield from _odd_points(cls)
    given = [member for member in MESSAGES if _has(cls, member)] if slot == "guidance" else []
    if given and len(given) < len(MESSAGES):
        rest = ", ".join(member for member in MESSAGES if member not in given)
        yield f"{cls.__name__} has {', '.join(given)} and lacks {rest}; guidance by messages needs all of them"


def _odd_points(cls: type) -> Iterator[str]:
    """Yield what is wrong with the further points of a guidance."""
    more, point = (inspect.getattr_static(cls, name, None) for name in ("also_at", "point"))
    if isinstance(more, tuple) and (len({point, *more}) <= len(more) or not set(more) <= set(get_args(Point))):
        known = ", ".join(each for each in get_args(Point) if each != point)
        yield f"{cls.__name__}.also_at must be points among {known}, each once, got {more!r}"


def _odd_paths(slot: str, cls: type) -> Iterator[str]:
    """Yield what is wrong with the options that a class says are paths, which are read before instantiation."""
    declared, fields = inspect.getattr_static(cls, "path_options", ()), fields_of(cls)
    if "path_options" not in optional(slot):
        return
    if "path_options" in fields or not (
        isinstance(declared, tuple) and all(isinstance(name, str) and name in fields for name in declared)
    ):
        known = ", ".join(sorted(fields)) or "it has none"
        yield (
            f"{cls.__name__}.path_options must be a tuple of names of its options, e.g. "
            f'path_options: ClassVar[tuple[str, ...]] = ("path",), got {declared!r}; its options: {known}'
        )


def _strangers(slot: str, cls: type) -> Iterator[str]:
    """Yield the public names that mean nothing in the slot, since each may be a misspelt member."""
    known = [*required(slot), *optional(slot)]
    for name in _own(cls):
        if name not in known:
            yield (
                f"{cls.__name__}.{name} means nothing in {slot}{nearest(name, known)}; a name of your own begins with "
                "an underscore"
            )


def _misspelt(slot: str, cls: type) -> Iterator[str]:
    """Yield the options, and in slots without strategies any public names, that look like a member which is absent."""
    absent = [member for member in optional(slot) if not _has(cls, member)]
    for name in (*sorted(fields_of(cls)), *(() if slot in OPTIONAL else _own(cls))):
        if name in required(slot) or name in optional(slot):
            continue
        for meant in difflib.get_close_matches(name, absent, 1, MISSPELT):
            yield f"{cls.__name__}.{name} looks like {meant!r}, which is read if it is there; choose another name"


def _unlike(cls: type, member: str, like: object) -> Iterator[str]:
    """Yield how a member differs from the protocol's; methods are called with positional arguments."""
    own = inspect.getattr_static(cls, member, ABSENT)
    if member in fields_of(cls):
        return
    if isinstance(like, property):
        if inspect.isfunction(own):
            yield f"{cls.__name__}.{member} is a method; it is read and not called, so decorate it with @property"
        return
    wanted = [each.name for each in _parameters(like)]
    call = f"{member}({', '.join(wanted)})"
    if not inspect.isroutine(own):
        yield f"{cls.__name__}.{member} must be a method, {call}, got {own!r}"
        return
    given = _parameters(own)
    try:
        inspect.Signature(given).bind(*wanted)
    except TypeError as error:
        yield f"{cls.__name__}.{member} is called as {call}, which it does not take: {error}"
        return
    names = [each.name for each in given]
    moved = [name for place, name in enumerate(names) if name in wanted and wanted.index(name) != place]
    if moved:
        yield f"{cls.__name__}.{member} is called as {call}, by position; it has {', '.join(moved)} in another place"


def _parameters(method: object) -> list[inspect.Parameter]:
    """Return the parameters of a method as defined in its class, without ``self``."""
    inner = method.__func__ if isinstance(method, (staticmethod, classmethod)) else method
    assert callable(inner)
    found = list(inspect.signature(inner).parameters.values())
    bound = not isinstance(method, staticmethod) and found and found[0].kind is not inspect.Parameter.VAR_POSITIONAL
    return found[1:] if bound else found


def _is_frozen(cls: type) -> bool:
    """Whether attrs refuses any assignment; a class that is only ``@define`` validates and assigns."""
    if not attrs.has(cls):
        return False
    try:
        object.__new__(cls).frozen = True  # type: ignore[attr-defined]
    except attrs.exceptions.FrozenInstanceError:
        return True
    except (AttributeError, TypeError):
        return False
    return False
