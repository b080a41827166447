"""From a model's name or folder to the adapter that can load it, without importing torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitrail.core.registry import Registry
from vitrail.errors import ModelError, nearest


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
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
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
