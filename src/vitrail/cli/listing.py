"""``vitrail methods`` and ``vitrail plugins``: listings of what is registered."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs
import typer

from vitrail.cli.console import console, say
from vitrail.core.config.registry import Registry
from vitrail.core.config.text_files import read_text
from vitrail.core.method.registration import SLOTS
from vitrail.errors import ConfigError
from vitrail.sampling.authors_code import AuthorsCode, authors_code
from vitrail.sampling.discovery import installed, registry
from vitrail.sampling.methods import load_method, summary

LABELS = {  # headings of slots, beginning with the key in a method file
    "patching": "patching: which views of the canvas the network sees",
    "guidance": "guidance: how predictions are corrected (a list)",
    "masking": "masking: where guidance acts",
    "fusion": "fusion: how the views' predictions become the canvas's",
    "prompting": "prompting: which text each view gets",
    "rectification": "rectification: changes inside the network, for a range of steps (a list)",
    "upscaler": "upscaler: what enlarges a picture, in `enter` and `finish`",
}
EXPERIMENT_LABELS = {
    "metrics": "metrics: what is measured of pictures (a list)",
    "features": "features: what metrics of sets look with",
    "references": "reference: true pictures that metrics compare with",
}


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, whose file is shown.")] = None,
    authors: Annotated[
        bool, typer.Option("--authors", help="Show how near a method is to its authors' own code.")
    ] = False,
    models: Annotated[
        bool, typer.Option("--models", help="Instead a table: which families of models each method serves.")
    ] = False,
) -> None:
    """List methods and strategies, with options; or show one method."""
    out = console()
    if name is None and authors:
        raise ConfigError("--authors: name a method, e.g. vitrail methods demofusion --authors")
    if models and name is not None:
        raise ConfigError("--models is about all methods; leave the name out")
    if name is None:
        say(out, model_lines(registry()) if models else method_lines(registry(), out.width))
    else:
        path = registry().path("methods", name)
        say(out, author_lines(name, authors_code(name), out.width) if authors else read_text(path).splitlines())


def plugins() -> None:
    """List plugins with what each adds."""
    out = console()
    say(out, plugin_lines(installed(), out.width))


def method_lines(names: Registry, width: int) -> Iterator[str]:
    """Yield the lines that list methods with summaries, then strategies with options and defaults.

    Args:
        names: The registry.
        width: Maximum length of a line in characters.
    """
    yield "Methods, for --method NAME"
    methods = {
        entry.name: _without_links(summary(names.path("methods", entry.name))) for entry in names.entries("methods")
    }
    column = max(map(len, methods), default=0)
    for name, text in methods.items():
        yield from _hanging(name, column, text.removeprefix(f"{name}: "), width)
    yield ""
    yield 'Strategies, for a method file: "NAME", or { type = "NAME", OPTION = ... }'
    yield from _slots(names, LABELS, width)
    yield ""
    yield "Metrics, for an experiment's file, written in the same way"
    yield from _slots(names, EXPERIMENT_LABELS, width)


def model_lines(names: Registry) -> Iterator[str]:
    """Yield a table, in Markdown, of methods and families of models: yes, or what the method lacks there."""
    families = {entry.name: entry.declared("offers") for entry in names.entries("backbones")}
    yield f"| method | {' | '.join(f'`{family}`' for family in families)} |"
    yield f"|---|{'---|' * len(families)}"
    for method in names.names("methods"):
        needs = load_method(method).needs
        cells = [", ".join(sorted(needs - offers)) for offers in families.values()]
        yield f"| `{method}` | {' | '.join(f'needs {lacking}' if lacking else 'yes' for lacking in cells)} |"


def author_lines(name: str, entry: AuthorsCode, width: int) -> Iterator[str]:
    """Yield the lines that hold a method beside its authors' code.

    Args:
        name: The method's.
        entry: What was measured.
        width: Maximum length of a line in characters, except of a command.
    """
    facts = {"code": entry.code or "none is public", "equal": entry.equal, "largest difference": entry.largest}
    yield name
    column = max(map(len, facts))
    for label, text in facts.items():
        yield from _hanging(label, column, text, width)
    if command := entry.command(name):
        yield from ("", "Nearest to it", *(f"  {line}" for line in command))
    yield from ("", "By design")
    for line in entry.differs:
        yield from _hanging("-", 1, line, width)


def _slots(names: Registry, labels: Mapping[str, str], width: int) -> Iterator[str]:
    """Yield the lines that list the strategies of some slots with their options."""
    column = max(len(entry.name) for slot in labels for entry in names.entries(slot))
    for slot, label in labels.items():
        yield from ("", f"  {label}")
        for entry in names.entries(slot):
            yield from _hanging(entry.name, column, _first_line(entry.value), width, indent=4)
            if options := ", ".join(map(_option, attrs.fields(entry.value))):  # type: ignore[arg-type]
                yield from _hanging("", column, options, width, indent=4)


def plugin_lines(names: Registry, width: int) -> Iterator[str]:
    """Yield the lines that list plugins with what they register, then plugins that failed to load.

    Args:
        names: The registry.
        width: Maximum length of a line in characters.
    """
    slots = [*SLOTS, "methods", "models"]
    column = max(map(len, slots))
    for plugin, source in names.plugins.items():
        yield f"{plugin}, from {source}"
        found = {slot: [e.name for e in names.entries(slot) if e.plugin == plugin] for slot in slots}
        for slot in (slot for slot in slots if found[slot]):
            yield from _hanging(slot, column, ", ".join(found[slot]), width)
        if plugin in names.observers:
            yield "  watches or wraps the stages of every run"
        elif not any(found.values()):
            yield "  adds nothing by name"
    for failure in names.failures:
        yield f"{failure.plugin}, from {failure.distribution}"
        reason = f"{'refused' if failure.stops else 'could not be loaded'}: {failure.error}"
        yield from textwrap.wrap(reason, width, initial_indent="  ", subsequent_indent="  ")


def _hanging(name: str, column: int, text: str, width: int, indent: int = 2) -> list[str]:
    """Format a name with a text beside it, wrapped between words with a hanging indent."""
    lead = " " * indent + name.ljust(column) + "  "
    options: Any = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead), **options) or [
        lead.rstrip()
    ]


def _first_line(value: object) -> str:
    return (value.__doc__ or "").split("\n")[0].replace("``", "")


def _without_links(text: str) -> str:
    return re.sub(r",? ?https?://[^\s)]*[^\s).,]", "", text)


def _option(field: attrs.Attribute[Any]) -> str:
    """Format an option with its default as in TOML; the name alone if the default is no TOML value."""
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    bare = not isinstance(default, (bool, int, float, str, list))
    return field.name if bare else f"{field.name} = {json.dumps(default)}"
