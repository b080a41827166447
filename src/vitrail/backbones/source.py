"""From a model's name or folder to the adapter that can load it, without importing torch."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from vitrail.core.registry import Registry
from vitrail.errors import ConfigError, ModelError, nearest


def find_model(model: str, registry: Registry) -> Any:
    """The spec of a model.

    Args:
        model: A registered name such as ``demo``, or a folder in diffusers' layout.
        registry: Knows names and adapters.

    Returns:
        An instance of the adapter class, with the folder; ``load`` makes a backbone of it.

    Raises:
        ModelError: If nothing is there, it is no diffusers folder, or no adapter fits its pipeline.
    """
    folder = _folder(model, registry)
    index = folder / "model_index.json"
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except FileNotFoundError as error:
        raise ModelError(
            f"model {model!r}: {index.name} is missing in {folder}; give the folder that "
            "`pipeline.save_pretrained(folder)` wrote"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelError(f"model {model!r}: {index} is not a diffusers model index: {error!r}") from error
    known = {name: cls for cls in _adapters(registry) for name in cls.pipelines}
    if pipeline not in known:
        raise ModelError(f"model {model!r}: no adapter for {pipeline!r}{nearest(pipeline, known)}")
    return known[pipeline](folder=folder)


def _adapters(registry: Registry) -> list[Any]:
    return [entry.value for entry in registry.entries("backbones")]


def _folder(model: str, registry: Registry) -> Path:
    if model in registry.names("models"):
        return registry.path("models", model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    raise ModelError(f"no model or folder {model!r}{nearest(model, registry.names('models'))}, or a diffusers folder")


def check_scheduler(name: str | None) -> None:
    """Refuse a scheduler that diffusers does not have; None is the model's own.

    Raises:
        ConfigError: With the nearest name.
    """
    if name is not None and name not in _scheduler_names():
        hint, _, every = nearest(name, _scheduler_names()).partition(";")
        raise ConfigError(f"no scheduler named {name!r}{hint or every}")


@functools.cache
def _scheduler_names() -> frozenset[str]:
    """Read from diffusers' sources, since importing it takes seconds."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "schedulers").glob("scheduling_*.py")
    found = (re.findall(r"^class (\w+Scheduler)\b", file.read_text(encoding="utf-8"), re.MULTILINE) for file in files)
    return frozenset(name for names in found for name in names)
