"""What stands for a pipeline: its weights, its adapters', and the settings of its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.backbones.loading.turns import weights_of_adapters

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 16  # values of a parameter
OF_LIBRARIES = ("transformers_version", "torch_dtype", "dtype")  # settings that say nothing about the model


def fingerprint_of(components: Mapping[str, Any]) -> str:
    """A digest of some values of every parameter, so that it costs little, of adapters and of settings.

    Settings are configs, such as a scheduler's betas and prediction type or a VAE's scaling factor, and the words of
    tokenizers; where the files lie is none of them.

    Args:
        components: Of a diffusers pipeline, by name.
    """
    digest = hashlib.sha256()
    for name, part in sorted(components.items()):
        digest.update(f"{name} {_settings(part)}".encode())
        if not hasattr(part, "state_dict") or not hasattr(part, "parameters"):
            continue
        for key, value in part.state_dict().items():
            some = [] if value.is_meta else _sampled(value)
            digest.update(f"{name} {key} {tuple(value.shape)} {value.dtype} {some}".encode())
        digest.update(f"{name} {weights_of_adapters(part)}".encode())
    return digest.hexdigest()


def _settings(part: Any) -> str:
    if hasattr(part, "get_vocab"):
        return json.dumps(part.get_vocab(), sort_keys=True)
    config = getattr(part, "config", None)
    if config is None:
        return ""
    return json.dumps(_own(config.to_dict() if hasattr(config, "to_dict") else dict(config)), sort_keys=True)


def _own(value: Any) -> Any:
    """What of a config says something about the model, as JSON knows it."""
    if isinstance(value, Mapping):
        kept = {str(name): each for name, each in value.items() if str(name) not in OF_LIBRARIES}
        return {name: _own(each) for name, each in kept.items() if not name.startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_own(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _sampled(value: Tensor) -> Sequence[float]:
    some: Sequence[float] = value.flatten()[:: max(1, value.numel() // SAMPLED)][:SAMPLED].double().tolist()
    return some
