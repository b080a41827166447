"""What the page asks for, read from JSON: a closed list of fields, none of which names a file."""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections.abc import Mapping
from typing import Any

from vitrail.core.config.loader import Loader
from vitrail.core.config.plain_data import check_plain
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError, nearest
from vitrail.sampling.discovery import registry

FIELDS = (
    *("prompt", "negative_prompt", "method", "width", "height", "seed"),
    *("num_inference_steps", "guidance_scale"),
)
LONGEST_TEXT = 2000  # characters of a prompt
MOST_PIXELS = 2**26  # of a picture, 8192x8192: larger ones are for the command line


def read_wish(body: bytes, defaults: Mapping[str, object]) -> RunConfig:
    """Return the run that a page asks for.

    Args:
        body: JSON with some of ``FIELDS``; an empty or missing seed draws one.
        defaults: Fields of a run with the values that suit the model.

    Raises:
        ConfigError: If it is no JSON, has an unknown field or a value out of range, or names no registered method.
    """
    given = _read(body)
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise ConfigError(f"there is no field {unknown[0]!r}{nearest(unknown[0], FIELDS)}")
    given = {name: value for name, value in given.items() if value not in (None, "")}
    for name in ("prompt", "negative_prompt"):
        if name in given:
            given[name] = _text(name, given[name])
    if not given.get("prompt"):
        raise ConfigError('write a sentence first, e.g. "a fox on a snow field"')
    methods, method = registry().names("methods"), str(given.get("method"))
    if method not in methods:
        raise ConfigError(f"there is no method {method!r}{nearest(method, methods)}")
    given.setdefault("seed", secrets.randbits(32))
    run = Loader(registry()).structure({**defaults, **given}, RunConfig, "this picture")
    if run.width * run.height > MOST_PIXELS:
        raise ConfigError(
            f"{run.width}x{run.height} is more than the {MOST_PIXELS // 10**6} megapixels that the page makes; use "
            "`vitrail sample` for it"
        )
    return run


def _read(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
        check_plain(given, "the request")
    except (ValueError, RecursionError) as error:
        raise ConfigError("the request is no JSON") from error
    if not isinstance(given, dict):
        raise ConfigError("the request is no JSON object")
    return given


def _text(name: str, value: object) -> str:
    """Return a text on one line, without control characters."""
    text = " ".join(value.split()) if isinstance(value, str) else None
    if text is None or any(unicodedata.category(each) in ("Cc", "Cs") for each in text):
        raise ConfigError(f"{name}: write a text without control characters")
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{name}: has {len(text)} characters, {LONGEST_TEXT} are the most")
    return text
