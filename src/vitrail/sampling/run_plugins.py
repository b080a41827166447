"""Plugins of single runs, given as MODULE:OBJECT, and versions of those that may change pictures."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.method.hookspecs import wraps
from vitrail.errors import ConfigError, nearest
from vitrail.sampling.discovery import installed, registry

DIGITS = 12
Named = tuple[str, object]


def load_plugins(names: Sequence[str]) -> list[Named]:
    """Import the plugins of the given names; return (name, plugin) pairs.

    Args:
        names: ``MODULE:OBJECT`` each; modules are also found in the working folder. A class is instantiated.

    Raises:
        ConfigError: For a name of another form, a duplicate, or one that cannot be imported.
    """
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise ConfigError(f"plugin {twice[0]!r} is given twice; leave one out")
    return [(name, _load(name)) for name in names]


def _load(name: str) -> object:
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(f"plugin {name!r}: write MODULE:OBJECT, e.g. my_package.probe:Probe")
    installed()  # installed plugins are found before the working folder is searched
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that nothing there shadows a library
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a main guard may end the process
        raise ConfigError(f"plugin {name!r}: {module_name} cannot be imported: {error!r}") from error
    for part in path.split("."):
        members = {key: value for key, value in getattr(found, "__dict__", {}).items() if not key.startswith("_")}
        if part not in members:
            raise ConfigError(f"plugin {name!r}: {module_name} has no {part!r}{nearest(part, members)}")
        found = members[part]
    try:
        return found() if isinstance(found, type) else found
    except TypeError as error:
        raise ConfigError(f"plugin {name!r}: {path} is a class and wants arguments: {error}; name an object") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plugin {name!r}: {path} cannot be made: {error!r}") from error


def attached(plugins: Iterable[Named]) -> tuple[Named, ...]:
    """Return installed plugins that have hooks of a run, then the given ones."""
    return (*registry().observers.items(), *plugins)


def wrapping(plugins: Iterable[Named]) -> dict[str, str]:
    """Return the versions of the plugins that wrap a hook, so that the picture may depend on them.

    Args:
        plugins: Plugins of a run.

    Returns:
        By name the distribution with its version, or a digest of the file that defines the plugin.
    """
    return {name: _version_of(plugin) for name, plugin in plugins if wraps(plugin)}


def plugin_changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return which wrapping plugins differ from those when a picture was made, one line each."""
    lines = [
        f"note: made with plugin {name!r} ({version}), here is {now.get(name, 'none')}; pixels may differ"
        for name, version in then.items()
        if now.get(name) != version
    ]
    more = [name for name in now if name not in then]
    return lines + [f"note: made without plugin {name!r}, which wraps stages here; pixels may differ" for name in more]


def _version_of(plugin: object) -> str:
    module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    found = _distributions().get(module.partition(".")[0], ())
    if found:
        return f"{found[0]} {metadata.version(found[0])}"
    file = sys.modules[module].__dict__.get("__file__")
    return "unknown" if file is None else digest_of_files([Path(file)])[:DIGITS]


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()
