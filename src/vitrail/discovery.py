"""Composition root: finds plugins and fills the registry. Built-ins register as any other plugin does."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable
from importlib import metadata

import pluggy

from vitrail.core.hookspecs import PROJECT, RegistrationSpecs, attach
from vitrail.core.log import logger
from vitrail.core.registry import Failure, Registry
from vitrail.errors import RegistrationError, VitrailError

BUILTINS = {
    "builtin": "vitrail.plugins",
    "backbones": "vitrail.backbones",
    "comm": "vitrail.comm",
    "metrics": "vitrail.metrics",
}
GROUP = "vitrail.plugins"
DISABLE = "VITRAIL_DISABLE_PLUGINS"  # comma-separated names, or "all" for every third-party plugin


@functools.cache
def registry() -> Registry:
    """The process's registry: built-ins and every installed plugin, loaded once."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    found = [] if "all" in disabled else list(metadata.entry_points(group=GROUP))
    return build_registry(entry for entry in found if entry.name not in disabled)


def registered_name(slot: str, cls: type) -> str | None:
    """The name of a class in a slot of the process's registry; None if it has none."""
    return next((entry.name for entry in registry().entries(slot) if entry.value is cls), None)


def build_registry(entry_points: Iterable[metadata.EntryPoint] = (), strict: bool = False) -> Registry:
    """A registry of the built-ins and the given entry points.

    Args:
        entry_points: Third-party plugins. One that fails to import is kept as a failure and told to
            whoever asks for a name that is not there.
        strict: Raise on the first plugin that fails to import instead.

    Raises:
        RegistrationError: On a collision of names, an unfit class or a misspelt hook.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RegistrationSpecs)
    result = Registry()
    for name, module in BUILTINS.items():
        attach(manager, name, importlib.import_module(module))
        result.plugins[name] = f"{PROJECT} (built in)"
    sources = dict(result.plugins)  # of those that fail to import, too
    for entry in entry_points:
        _register_entry(manager, result, entry, sources, strict)
    for implementation in manager.hook.vitrail_register.get_hookimpls():
        result.plugin = implementation.plugin_name
        try:
            implementation.function(result)
        except VitrailError:
            raise
        except Exception as error:  # most often an import inside the function
            _keep_failure(result, result.plugin, result.plugins.pop(result.plugin), error, strict)
    return result


def _register_entry(
    manager: pluggy.PluginManager, result: Registry, entry: metadata.EntryPoint, sources: dict[str, str], strict: bool
) -> None:
    source = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
    if entry.name in sources:
        raise RegistrationError(
            f"plugin {entry.name!r} is offered by both {sources[entry.name]} and {source} ({entry.value}); "
            f"uninstall one or set {DISABLE}={entry.name}"
        )
    sources[entry.name] = source
    try:
        plugin = entry.load()
    except Exception as error:
        _keep_failure(result, entry.name, source, error, strict)
        return
    attach(manager, entry.name, plugin)
    result.plugins[entry.name] = source
    logger().debug("plugin.loaded", plugin=entry.name, distribution=source)


def _keep_failure(result: Registry, name: str, source: str, error: Exception, strict: bool) -> None:
    if strict or name in BUILTINS:
        raise RegistrationError(f"plugin {name!r} ({source}) failed to load: {error!r}") from error
    result.failures.append(Failure(name, source, repr(error)))
    logger().warning("plugin.load_failed", plugin=name, distribution=source, error=repr(error))
