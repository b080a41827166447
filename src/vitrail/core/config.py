"""One strict loader for TOML, YAML and Python data: every problem at once, with path and nearest name."""

from __future__ import annotations

import functools
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import yaml
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from vitrail.core.composition import Composition, Family, Stage
from vitrail.core.protocols import Fusion, Guidance, Masking, Patching
from vitrail.core.registry import Registry
from vitrail.errors import ConfigError, nearest

T = TypeVar("T")
SLOTS: dict[type, str] = {Patching: "patching", Guidance: "guidance", Masking: "masking", Fusion: "fusion"}


class Loader:
    """Structures data into frozen classes and back, with the names of one registry."""

    def __init__(self, registry: Registry):
        self._registry = registry
        self._converter = Converter(forbid_extra_keys=True)
        for kind, hook in ((bool, _bool), (int, _int), (float, _float), (str, _str)):
            self._converter.register_structure_hook(kind, hook)
        self._converter.register_structure_hook_func(lambda t: typing.get_origin(t) is tuple, self._tuple)
        self._converter.register_structure_hook_func(lambda t: typing.get_origin(t) is typing.Literal, _literal)
        for protocol, slot in SLOTS.items():
            self._converter.register_structure_hook_func(
                lambda t, protocol=protocol: t is protocol, functools.partial(self._strategy, slot)
            )
        plain = make_dict_structure_fn(Stage, self._converter, _cattrs_forbid_extra_keys=True)
        self._converter.register_structure_hook(
            Stage, lambda value, kind: plain({"masking": "none"} | _table(value, kind), kind)
        )

    def structure(self, data: object, kind: type[T], where: str) -> T:
        """Build an instance.

        Args:
            data: Nested tables, lists and scalars.
            kind: The attrs class wanted.
            where: Named in the error, e.g. the file.

        Raises:
            ConfigError: Listing every problem with its path.
        """
        try:
            return self._converter.structure(data, kind)
        except (BaseValidationError, ValueError, TypeError) as error:
            lines = transform_error(error, path="$", format_exception=_explain)
            raise ConfigError(f"{where}:\n  " + "\n  ".join(lines)) from error

    def unstructure(self, value: Any) -> Any:
        """The way back: every default spelt out, strategies as tables with their registered ``type``."""
        if isinstance(value, (Composition, Stage, Family)) or type(value) in self._strategies():
            table = {f.name: self.unstructure(getattr(value, f.name)) for f in attrs.fields(type(value))}
            name = self._strategies().get(type(value))
            return {"type": name, **table} if name else table
        if isinstance(value, (tuple, list)):
            return [self.unstructure(item) for item in value]
        if attrs.has(type(value)):
            slot = next((s for p, s in SLOTS.items() if all(hasattr(value, m) for m in _members(p))), "a strategy")
            raise ConfigError(f"{type(value).__name__} is not registered as {slot}, so it cannot be written to a file")
        return value

    def _strategies(self) -> dict[type, str]:
        return {e.value: e.name for s in SLOTS.values() for e in self._registry.entries(s) if isinstance(e.value, type)}

    def _strategy(self, slot: str, value: object, _: type) -> Any:
        table = {"type": value} if isinstance(value, str) else dict(_table(value, None))
        if "type" not in table:
            raise ValueError(f"'type' is missing; it names the {slot}{nearest('', self._registry.names(slot))}")
        name = table.pop("type")
        return self._converter.structure(table, self._registry.get(slot, _str(name, str)))

    def _tuple(self, value: object, kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list, got {value!r}")
        return tuple(self._converter.structure(list(value), list[typing.get_args(kind)[0]]))  # type: ignore[misc]


def _members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def _table(value: object, _: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a table, got {value!r}")
    return dict(value)


def _bool(value: object, _: type) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def _int(value: object, _: type) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _float(value: object, _: type) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _str(value: object, _: type) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def _literal(value: object, kind: Any) -> Any:
    allowed = typing.get_args(kind)
    if value not in allowed:
        raise ValueError(f"got {value!r}{nearest(str(value), map(str, allowed))}")
    return value


def _explain(error: BaseException, _: type | None) -> str:
    """One line for one problem."""
    if isinstance(error, ForbiddenExtraKeysError):
        known = [f.name for f in attrs.fields(error.cl)]
        name = error.cl.__name__
        return "; ".join(f"{name} has no key {key!r}{nearest(key, known)}" for key in sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"missing key {error.args[0]!r}"
    text = str(error.args[0]) if error.args else repr(error)
    return text.replace("\n", " ")


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or YAML file into nested tables.

    Raises:
        ConfigError: If it is not there, not TOML or YAML, or broken; with line and column where known.
    """
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"{path}: expected a .toml, .yaml or .yml file")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        data = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _StrictYaml)  # noqa: S506
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a table at the top, got {data!r}")
    return data


class _StrictYaml(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, as TOML does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply ``path.to.key=value`` to nested tables; the value is written as in TOML, or is plain text.

    Raises:
        ConfigError: If the path does not lead anywhere.
    """
    import copy

    result = copy.deepcopy(data)
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set {assignment!r}: write path=value, e.g. stages.0.guidance.0.scale=2")
        *parents, last = path.strip().split(".")
        target: Any = result
        for depth, part in enumerate(parents):
            target = _descend(target, part, ".".join(parents[: depth + 1]), assignment)
        if isinstance(target, list):
            _descend(target, last, path, assignment)
            target[int(last)] = _value(text)
        elif isinstance(target, dict):
            target[last] = _value(text)
        else:
            raise ConfigError(f"--set {assignment!r}: {'.'.join(parents)} is {target!r}, not a table")
    return result


def _descend(target: Any, part: str, path: str, assignment: str) -> Any:
    if isinstance(target, list):
        if not part.isdigit() or int(part) >= len(target):
            raise ConfigError(f"--set {assignment!r}: {path} does not exist; indices run from 0 to {len(target) - 1}")
        if isinstance(target[int(part)], str):
            target[int(part)] = {"type": target[int(part)]}
        return target[int(part)]
    if not isinstance(target, dict) or part not in target:
        known = list(target) if isinstance(target, dict) else []
        raise ConfigError(f"--set {assignment!r}: {path} does not exist{nearest(part, known)}")
    if isinstance(target[part], str):
        target[part] = {"type": target[part]}  # the short form of a strategy
    return target[part]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
