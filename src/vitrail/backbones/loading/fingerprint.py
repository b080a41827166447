"""Fingerprint of a pipeline: its weights, the weights of its adapters, and the settings of its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.backbones.loading.turns import weights_of_adapters

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 16  # sampled values per parameter
OF_LIBRARIES = ("transformers_version", "torch_dtype", "dtype")  # settings that do not concern the model


def fingerprint_of(components: Mapping[str, Any]) -> str:
    """Return a digest of a few values of every parameter, of adapters and of settings.

    Settings are configurations, such as a scheduler's betas and prediction type or a VAE's scaling factor, and the
    vocabularies of tokenizers; paths of files are not included.

    Args:
        components: Components of a diffusers pipeline, by name.
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
    """Return the settings of a configuration that concern the model, in JSON types."""
    if isinstance(value, Mapping):
        kept = {str(name): each for name, each in value.items() if str(name) not in OF_LIBRARIES}
        return {name: _own(each) for name, each in kept.items() if not name.startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_own(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _sampled(value: Tensor) -> Sequence[float]:
    some: Sequence[float] = value.flatten()[:: max(1, value.numel() // SAMPLED)][:SAMPLED].double().tolist()
    return some
