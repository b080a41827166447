"""Writes docs/reference.md from the code: slots, strategies, options, hooks, runs, experiments, events, errors.

Usage: python tools/build_reference.py

The test suite fails if the page is not what this prints.
"""

import inspect
import re
from pathlib import Path

import attrs

from vitrail import errors
from vitrail.core.hookspecs import EXCLUSIVE, RegistrationSpecs, StageSpecs
from vitrail.core.log import EVENTS
from vitrail.core.registry import MEMBERS
from vitrail.core.run_config import RunConfig
from vitrail.discovery import build_registry
from vitrail.experiments.experiment import Axis, Experiment, HeatMap, MethodEntry, Setting, SizeEntry
from vitrail.methods import summary

PAGE = Path(__file__).parents[1] / "docs/reference.md"


def comments(cls: type) -> dict[str, str]:
    """The comment behind each field of a class, its own or inherited."""
    found: dict[str, str] = {}
    text = "\n".join(inspect.getsource(base) for base in cls.__mro__[:-1])
    for field in attrs.fields(cls):
        match = re.search(rf"^    {field.name}: .*?#\s*(.+?)$", text, re.M)
        several = re.search(rf"^    {field.name}: [^\n]*\(\n(?:        .*\n)+    \)\s*# (.+)$", text, re.M)
        chosen = several or match
        found[field.name] = chosen[1] if chosen else ""
    return found


def options(cls: type) -> list[str]:
    """One line a field: name, default, comment."""
    notes = comments(cls)
    lines = []
    for field in attrs.fields(cls):
        value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        default = "required" if value is attrs.NOTHING else f"`{value!r}`"
        lines.append(f"    - `{field.name}` ({default}): {notes[field.name]}".rstrip(": "))
    return lines


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def reference() -> str:
    """The whole page."""
    registry = build_registry()
    lines = ["# Reference", "", "Made from the code by `python tools/build_reference.py`.", "", "## Methods", ""]
    for entry in registry.entries("methods"):
        lines.append(f"- `{entry.name}`: {summary(registry.path('methods', entry.name)).partition(': ')[2]}")
    lines += ["", "## Slots and built-in strategies", ""]
    for slot in MEMBERS:
        lines.append(f"### {slot}")
        lines.append("")
        for entry in registry.entries(slot):
            lines.append(f"- `{entry.name}`: {first_line(entry.value)}")
            lines += options(entry.value)
        lines.append("")
    lines += ["## A run", "", "The fields of a run file, of `vitrail sample` and of a sampler's call.", ""]
    lines += [line.removeprefix("    ") for line in options(RunConfig)]
    lines += ["", "## An experiment", "", "The fields of a file for `vitrail run`."]
    for cls in (Experiment, SizeEntry, MethodEntry, Axis, Setting, HeatMap):
        lines += ["", f"### {cls.spoken.capitalize()}", "", first_line(cls), ""]
        lines += [line.removeprefix("    ") for line in options(cls)]
    lines += [
        "",
        "## Hooks",
        "",
        "Entry-point group `vitrail.plugins`; mark implementations with `vitrail.hookimpl`.",
        "",
    ]
    for specs in (RegistrationSpecs, StageSpecs):
        for name, hook in vars(specs).items():
            if name.startswith("vitrail_"):
                arguments = ", ".join(list(inspect.signature(hook).parameters)[1:])
                kind = " *(exclusive: wrap it)*" if name in EXCLUSIVE else ""
                lines.append(f"- `{name}({arguments})`{kind}: {first_line(hook).removeprefix('Exclusive: ')}")
    lines += ["", "## Events", "", "Logged through structlog on the standard logger `vitrail`.", ""]
    lines += [f"- `{name}`: {text}" for name, text in EVENTS.items()]
    lines += ["", "## Errors", ""]
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.VitrailError):
            lines.append(f"- `{name}`: {first_line(cls)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
