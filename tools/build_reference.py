"""Write docs/reference.md from the code: slots, strategies, runs, methods, experiments, hooks, events, errors.

Usage: python tools/build_reference.py

The test suite fails if the page is not up to date.
"""

import ast
import inspect
import io
import itertools
import textwrap
import tokenize
from pathlib import Path

import attrs

from vitrail import errors
from vitrail.core.config.log import EVENTS
from vitrail.core.config.region import Region
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.cascade import Cascade, Enter, Finish
from vitrail.core.method.composition import Composition
from vitrail.core.method.hookspecs import EXCLUSIVE, RegistrationSpecs, StageSpecs
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.registration import SLOTS
from vitrail.core.method.stage import Repeat, Stage, ViewGroup
from vitrail.experiments.spec.experiment import Axis, Experiment, HeatMap, MethodEntry, Setting, SizeEntry
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import summary

PAGE = Path(__file__).parents[1] / "docs/reference.md"
METHOD = {
    "At the top": Composition,
    "`[[stages]]`": Stage,
    "`[[stages.extra_views]]`": ViewGroup,
    "`[cascade]`": Cascade,
    "`enter`": Enter,
    "`[finish]`": Finish,
    "`sizes`": SizeConditioning,
    "`repeat`": Repeat,
}


def comments(cls: type) -> dict[str, str]:
    """Return the trailing comment of each field of a class, own or inherited, with comment lines that follow it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        said = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        alone = {line for line, token in said.items() if token.line.lstrip().startswith("#")}
        (body,) = (each.body for each in ast.parse(source).body if isinstance(each, ast.ClassDef))
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in said:
                below = itertools.takewhile(alone.__contains__, itertools.count(node.end_lineno + 1))
                texts = [said[line].string.lstrip("# ") for line in (node.end_lineno, *below)]
                found[node.target.id] = " ".join(texts)
    return found


def choices(validator: object) -> tuple[object, ...]:
    """Return the allowed values of a field, if its validator lists them."""
    parts = getattr(validator, "_validators", None) or [getattr(validator, "validator", None)]
    own = getattr(validator, "options", None)
    return tuple(own) if own else tuple(choice for part in parts if part is not None for choice in choices(part))


def options(cls: type) -> list[str]:
    """Return one line per field: name, default, other choices, comment."""
    notes = comments(cls)
    lines = []
    for field in attrs.fields(cls):
        value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        default = "required" if value is attrs.NOTHING else f"`{value!r}`"
        others = [f"`{choice!r}`" for choice in choices(field.validator) if choice != value]
        told = f"{default}; or {', '.join(others)}" if others else default
        lines.append(f"    - `{field.name}` ({told}): {notes.get(field.name, '')}".rstrip(": "))
    return lines


def first_line(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").split("\n")[0]


def reference() -> str:
    """Return the text of the page."""
    registry = build_registry()
    lines = ["# Reference", "", "Made from the code by `python tools/build_reference.py`.", "", "## Methods", ""]
    for entry in registry.entries("methods"):
        lines.append(f"- `{entry.name}`: {summary(registry.path('methods', entry.name)).partition(': ')[2]}")
    lines += ["", "## Slots and built-in strategies", ""]
    for slot in SLOTS:
        lines.append(f"### {slot}")
        lines.append("")
        for entry in registry.entries(slot):
            lines.append(f"- `{entry.name}`: {first_line(entry.value)}")
            lines += options(entry.value)
        lines.append("")
    lines += ["## A run", "", "The fields of a run file, of `vitrail sample` and of a sampler's call.", ""]
    lines += [line.removeprefix("    ") for line in options(RunConfig)]
    lines += ["", "### A region", "", first_line(Region), ""]
    lines += [line.removeprefix("    ") for line in options(Region)]
    lines += ["", "## A method", "", "The fields of a method's file; a strategy is its name, or a table with a `type`."]
    for key, cls in METHOD.items():
        lines += ["", f"### {key}", "", first_line(cls), "", *(line.removeprefix("    ") for line in options(cls))]
    lines += ["", "## An experiment", "", "The fields of a file for `vitrail run`."]
    for cls in (Experiment, SizeEntry, MethodEntry, Axis, Setting, HeatMap):
        lines += ["", f"### {cls.noun.capitalize()}", "", first_line(cls), ""]
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
