"""Strict loader for TOML, YAML and Python data: reports every problem at once, with path and nearest name."""

from __future__ import annotations

import functools
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from cattrs import BaseValidationError, Converter, transform_error
from cattrs import override as cattrs_override
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from vitrail.core.config.fields import as_declared, is_written
from vitrail.core.config.plain_data import LARGEST_WHOLE
from vitrail.core.config.registry import Registry
from vitrail.core.config.renamed_keys import RENAMED, current_keys
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.call_words import CALL_WORDS, OF_A_CALL
from vitrail.core.method.cascade import Cascade, Enter, Finish
from vitrail.core.method.composition import Composition
from vitrail.core.method.metric import Features, Metric, References
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.protocols import Fusion, Guidance, Masking, Patching, Prompting, Rectification, Upscaler
from vitrail.core.method.registration import slots_of
from vitrail.core.method.stage import Repeat, Stage, ViewGroup
from vitrail.errors import ConfigError, nearest, shortened

T = TypeVar("T")
MOST_PROBLEMS, MOST_KEYS, LONGEST_PROBLEM = (
    40,
    20,
    2000,
)  # reported problems, unknown keys of a table, characters of a problem
SLOTS: dict[type, str] = {
    Patching: "patching",
    Guidance: "guidance",
    Masking: "masking",
    Fusion: "fusion",
    Prompting: "prompting",
    Rectification: "rectification",
    Upscaler: "upscaler",
    Metric: "metrics",
    Features: "features",
    References: "references",
}
TITLES = {
    Composition: "a method",
    Stage: "a stage",
    ViewGroup: "a view group",
    Cascade: "'cascade'",
    Enter: "'enter'",
    Finish: "'finish'",
    SizeConditioning: "'sizes'",
    Repeat: "'repeat'",
    RunConfig: "a run",
}

FORMER_KEYS = {then: f"it is {now!r} now, which is given as well; keep that one" for then, now in RENAMED.items()}


@functools.lru_cache(maxsize=8)  # the code that reads a class's tables is made once for a registry
def loader_of(registry: Registry) -> Loader:
    """Return the loader with the names of a registry."""
    return Loader(registry)


class Loader:
    """Structure data into frozen classes and back, with the names of one registry."""

    def __init__(self, registry: Registry):
        self._registry = registry
        self._converter = Converter(forbid_extra_keys=True)
        for kind, hook in ((bool, _bool), (int, _int), (float, _float), (str, _str)):
            self._converter.register_structure_hook(kind, hook)
        self._converter.register_structure_hook_func(_is(tuple), self._tuple)
        self._converter.register_structure_hook_func(_is(typing.Literal), _literal)
        self._converter.register_structure_hook_factory(attrs.has, self._table_hook)
        for protocol, slot in SLOTS.items():
            self._converter.register_structure_hook_func(
                functools.partial(operator.is_, protocol), functools.partial(self._strategy, slot)
            )

    def structure(self, data: object, kind: type[T], where: str) -> T:
        """Build an instance of an attrs class from plain data.

        Args:
            data: Nested tables, lists and scalars.
            kind: The attrs class to build.
            where: Origin of the data for the error, e.g. the file.

        Raises:
            ConfigError: Listing every problem as ``$.path.to.it: what is wrong``; ``$`` is the top of the data.
        """
        try:
            return self._converter.structure(current_keys(data) if kind is Composition else data, kind)
        except (BaseValidationError, ValueError, TypeError) as error:
            lines = transform_error(error, path="$", format_exception=self._explain)
            split = (line.rpartition(" @ ") for line in lines[:MOST_PROBLEMS])
            problems = [f"{shortened(path)}: {shortened(text, LONGEST_PROBLEM)}" for text, _, path in split]
            more = [f"and {len(lines) - MOST_PROBLEMS} problems more"] if len(lines) > MOST_PROBLEMS else []
            raise ConfigError(f"{where}:\n  " + "\n  ".join([*problems, *more])) from error

    def unstructure(self, value: Any) -> Any:
        """Convert back to plain data: defaults written out, strategies as tables with their registered ``type``.

        Fields that a class has got since pictures were made with it are left out at their defaults; see ``is_written``.

        Raises:
            ConfigError: If a strategy is not registered.
        """
        name = self._name_of(type(value))
        if name or (type(value) in TITLES and type(value) is not RunConfig):
            each = ((f, getattr(value, f.name)) for f in attrs.fields(type(value)))
            table = {f.name: self.unstructure(as_declared(f, item)) for f, item in each if is_written(f, item)}
            return {"type": name[1], **table} if name else table
        if isinstance(value, (tuple, list)):
            return [self.unstructure(item) for item in value]
        if attrs.has(type(value)):
            slot = (slots_of(type(value)) or ["a strategy"])[0]
            raise ConfigError(f"{type(value).__name__} is not registered as {slot}, so it cannot be written to a file")
        return _plain(value)

    def _name_of(self, cls: type) -> tuple[str, str] | None:
        """Return slot and name of a registered strategy's class."""
        found = [(entry.slot, entry.name) for entry in self._registry.entries_of(cls) if entry.slot in SLOTS.values()]
        return found[-1] if found else None

    def _table_hook(self, cls: type) -> Callable[[object, type], Any]:
        """Return a hook from a table to an attrs class; fields are checked one by one, to list all errors."""
        fields: dict[str, Any] = {
            f.name: cattrs_override(struct_hook=functools.partial(self._field, f)) for f in attrs.fields(cls)
        }
        plain: Callable[[Any, Any], Any] = make_dict_structure_fn(
            cls, self._converter, _cattrs_forbid_extra_keys=True, **fields
        )
        preset = {"masking": "none"} if cls is Stage else {}
        return lambda value, kind: plain(preset | _table(value), kind)

    def _field(self, attribute: attrs.Attribute[Any], value: object, kind: Any) -> Any:
        structured = self._converter.structure(value, kind)
        if attribute.validator is not None:
            try:
                attribute.validator(None, attribute, structured)
            except AttributeError:  # it reads its instance, so it runs when there is one
                return structured
        return structured

    def _strategy(self, slot: str, value: object, _: type) -> Any:
        if not isinstance(value, (str, Mapping)):
            raise ValueError(f"expected a {slot} by name or as a table with 'type', got {_shown(value)}")
        table = {"type": value} if isinstance(value, str) else dict(value)
        if "type" not in table:
            raise ValueError(f"'type' is missing, the name of the {slot}{nearest('', self._registry.names(slot))}")
        name = table.pop("type")
        if not isinstance(name, str):
            raise ValueError(f"'type' must be the name of a {slot}, got {_shown(name)}")
        return self._converter.structure(table, self._registry.get(slot, name))

    def _tuple(self, value: object, kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            hint = "; put [ ] around it" if isinstance(value, (str, Mapping)) else ""
            raise ValueError(f"expected a list, got {_shown(value)}{hint}")
        items: Any = list[typing.get_args(kind)[0]]  # type: ignore[misc]
        return tuple(self._converter.structure(list(value), items))

    def _explain(self, error: BaseException, _: type | None) -> str:
        """Describe one problem in one line, in the terms of a file rather than of Python."""
        if isinstance(error, ForbiddenExtraKeysError):
            slot_name = self._name_of(error.cl)
            noun = TITLES.get(error.cl) or getattr(error.cl, "noun", error.cl.__name__)
            title = noun if slot_name is None else "{} {!r}".format(*slot_name)
            known = [f.name for f in attrs.fields(error.cl)]
            extra = sorted(map(str, error.extra_fields))[:MOST_KEYS]
            words = {RunConfig: {**CALL_WORDS, **OF_A_CALL}, Stage: FORMER_KEYS}.get(error.cl, {})
            known_words = {key: f": {words[key]}" for key in extra if key in words}
            hints = {key: known_words.get(key) or nearest(key, known) for key in extra}
            return "; ".join(f"{title} has no key {shortened(key, 60)!r}{hint}" for key, hint in hints.items())
        if isinstance(error, KeyError):
            return "is missing"
        text = " ".join(str(error.args[0]).split()) if error.args else repr(error)
        text = re.sub(r"^Length of '\w+' must be >= (\d+): (\d+)$", r"must have \1 or more entries, got \2", text)
        return re.sub(r"^'\w+' must be (.+): (.+)$", r"must be \1, got \2", text)


def _is(origin: object) -> Callable[[Any], bool]:
    """Return a predicate: whether a type is a parametrisation of a generic one."""
    return lambda kind: typing.get_origin(kind) is origin


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a table, got {_shown(value)}")
    return dict(value)


def _plain(value: Any) -> object:
    """Convert a numpy scalar to Python's; return anything else unchanged."""
    numpy = sys.modules.get("numpy")  # imported already if the value is one of its scalars
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _bool(value: object, _: type) -> bool:
    value = _plain(value)
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {_shown(value)}")
    return value


def _int(value: object, _: type) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {_shown(value)}")
    if not -LARGEST_WHOLE <= value < LARGEST_WHOLE:
        raise ValueError(f"expected a whole number of 64 bits, got {_shown(value)}")
    return value


def _float(value: object, _: type) -> float:
    value = _plain(value)
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        raise ValueError(f"expected a number, got {_shown(value)}; YAML wants a point in it, as in 1.0e-3")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"expected a number of 64 bits, got {_shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return float(value)


def _str(value: object, _: type) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {_shown(value)}")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        shown = ascii(shortened(value))
        raise ValueError(f"expected text in UTF-8, got other bytes in {shown}; look at the terminal's encoding")
    return str(value)


def _literal(value: object, kind: Any) -> Any:
    value, allowed = _plain(value), typing.get_args(kind)
    if value not in allowed:
        hint = "; YAML reads on, off, yes and no as true or false" if isinstance(value, bool) else ""
        raise ValueError(f"got {_shown(value)}{nearest(str(value), map(str, allowed))}{hint}")
    return value


def _shown(value: object) -> str:
    """Describe a value in the terms of a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {shortened(value)!r}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and not -LARGEST_WHOLE <= value < LARGEST_WHOLE:
        return "a number of more than 64 bits"  # which Python may refuse to convert to text
    return {list: "a list", tuple: "a list", type(None): "nothing"}.get(type(value)) or shortened(repr(value))
