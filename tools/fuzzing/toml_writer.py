"""Writer of plain data as TOML, valid by a schema or not; None is left out."""

import json
import math
from datetime import date, datetime, time
from typing import Any


def toml_of(table: dict[str, Any]) -> str:
    """Return a table as TOML, with nested tables inline."""
    return "".join(f"{_key(name)} = {_value(value)}\n" for name, value in table.items() if value is not None)


def _key(name: Any) -> str:
    return json.dumps(_written(str(name)))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan" if math.isnan(value) else repr(value))
    if isinstance(value, int):
        return hex(value) if value > 2**63 else str(value)
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(n)} = {_value(v)}" for n, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(each) for each in value if each is not None) + "]"
    return json.dumps(_written(str(value)))


def _written(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded, and DEL."""
    return text.encode("utf-8", "replace").decode().replace("\x7f", "?")
