"""State as plain data and tensors, and files of both: safe to read, since they contain no code."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vitrail.core.config.sealed import load_sealed, save_sealed
from vitrail.errors import ConfigError, shortened

if TYPE_CHECKING:
    from torch import Tensor

OWN = ("vitrail.core", "vitrail.plugins")  # packages whose classes any state may have
PLAIN = (type(None), bool, int, float, str)


class NotStateError(TypeError):
    """A value that is neither plain data, tensors nor attrs classes of them."""


def pack(value: Any, tensors: list[Tensor]) -> Any:
    """Convert a value to JSON data; its tensors are appended to the list and referred to by position.

    Raises:
        NotStateError: If the value cannot be written.
    """
    import torch

    if isinstance(value, PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"kind": "tensor", "value": len(tensors) - 1, "on_device": value.device.type != "cpu"}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "value": [pack(item, tensors) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"kind": "dict", "value": {key: pack(item, tensors) for key, item in value.items()}}
    if isinstance(value, Mapping):
        return {"kind": "pairs", "value": [[pack(k, tensors), pack(item, tensors)] for k, item in value.items()]}
    if attrs.has(type(value)):
        cls = type(value)
        fields = {field.alias: getattr(value, field.name) for field in attrs.fields(cls) if field.init}
        return {"kind": "attrs", "value": f"{cls.__module__}:{cls.__qualname__}", "fields": pack(fields, tensors)}
    raise NotStateError(
        f"{type(value).__name__} cannot be kept in a checkpoint; keep state in tensors or attrs classes"
    )


def unpack(data: Any, tensors: Sequence[Tensor], device: Any = None, packages: Collection[str] | None = None) -> Any:
    """Restore a value that ``pack`` converted.

    Args:
        data: The JSON data.
        tensors: The tensors that it refers to.
        device: Device of the tensors that were not on the CPU.
        packages: Packages whose classes may be made, with those in them; None for data of this process, which may have
            any loaded class.

    Raises:
        ConfigError: If no loaded module of these packages has one of the value's classes.
    """
    if isinstance(data, PLAIN):
        return data
    kind, content = data["kind"], data["value"]
    if kind == "tensor":
        return tensors[content].to(device) if data["on_device"] else tensors[content]
    if kind in ("list", "tuple"):
        items = [unpack(item, tensors, device, packages) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "pairs":
        pairs = [[unpack(part, tensors, device, packages) for part in pair] for pair in content]
        return dict(pairs)
    if kind == "dict":
        return {key: unpack(item, tensors, device, packages) for key, item in content.items()}
    return _class_of(content, packages)(**unpack(data["fields"], tensors, device, packages))


def _class_of(name: str, packages: Collection[str] | None) -> Any:
    module, _, cls_name = name.partition(":")
    if packages is not None and not any(f"{module}.".startswith(f"{package}.") for package in packages):
        raise ConfigError(f"the checkpoint holds a {shortened(name)}, which is not of this run's strategies")
    cls = getattr(sys.modules.get(module), cls_name, None)  # never an import: a file must not run code
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise ConfigError(f"the checkpoint holds a {shortened(name)}, which no loaded plugin has")
    return cls


def save_state(path: Path, value: Any) -> None:
    """Write a value atomically."""
    tensors: list[Tensor] = []
    skeleton = json.dumps(pack(value, tensors))
    save_sealed(path, {str(i): tensor for i, tensor in enumerate(tensors)}, skeleton)


def load_state(path: Path, packages: Collection[str] = ()) -> Any:
    """Read a file that ``save_state`` wrote.

    Args:
        path: The file.
        packages: Packages besides ``OWN`` whose classes the file may hold: those of the run's strategies. A file of a
            stranger must not make objects of other classes.

    Raises:
        ConfigError: If the file is not a checkpoint, is damaged, or holds another class.
    """
    tensors, skeleton = load_sealed(path, "a checkpoint of a run")
    try:
        return unpack(json.loads(skeleton), [tensors[str(i)] for i in range(len(tensors))], None, (*OWN, *packages))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not a checkpoint of a run: {type(error).__name__}: {error}") from error
