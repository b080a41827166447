"""Composition root: find plugins and fill the registry. Built-ins register as any other plugin does."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable
from importlib import metadata

import pluggy

from vitrail.core.config.log import logger
from vitrail.core.config.registry import HERE, Failure, Registry
from vitrail.core.method.hookspecs import (
    PROJECT,
    RegistrationSpecs,
    StageSpecs,
    answers,
    attach,
    exclusive_answer,
    stage_hooks,
)
from vitrail.errors import RegistrationError

BUILTINS = {
    "builtin": "vitrail.plugins",
    "backbones": "vitrail.backbones",
    "comm": "vitrail.comm",
    "metrics": "vitrail.metrics",
}
BUILT_IN = f"{PROJECT} (built in)"
GROUP = "vitrail.plugins"
DISABLE = "VITRAIL_DISABLE_PLUGINS"  # comma-separated names, or "all" for every third-party plugin


def registry() -> Registry:
    """Return the process's registry of built-ins and all installed plugins, loaded once.

    Raises:
        RegistrationError: If names collide or a plugin registers something that does not fit; ``installed`` still
            works.
    """
    found = installed()
    found.refuse_broken()
    return found


@functools.cache
def installed() -> Registry:
    """Return the same registry, also if plugins are broken."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    found = [] if "all" in disabled else list(metadata.entry_points(group=GROUP))
    return build_registry(entry for entry in found if entry.name not in disabled)


def registered_name(slot: str, cls: type) -> str | None:
    """Return the registered name of a class in a slot; None if it has none."""
    return next((entry.name for entry in registry().entries(slot) if entry.value is cls), None)


def build_registry(entry_points: Iterable[metadata.EntryPoint] = (), strict: bool = False) -> Registry:
    """Return a registry of the built-ins and the given entry points.

    Args:
        entry_points: Third-party plugins. A broken one is recorded as a failure: one that cannot be imported is
            mentioned when a name is not found, and ``Registry.refuse_broken`` raises for one that takes another's name,
            registers an unfit class or misspells a hook.
        strict: Raise on the first failure instead.

    Raises:
        RegistrationError: If a built-in plugin is broken, or with ``strict``.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RegistrationSpecs)
    manager.add_hookspecs(StageSpecs)
    result = Registry()
    for name, module in BUILTINS.items():
        attach(manager, name, importlib.import_module(module))
        result.plugins[name] = BUILT_IN
    sources = dict(result.plugins)  # including plugins that cannot be imported
    for entry in entry_points:
        _register_entry(manager, result, entry, sources, strict)
    for implementation in manager.hook.vitrail_register.get_hookimpls():
        name = result.plugin = implementation.plugin_name
        try:
            implementation.function(result)
        except RegistrationError as error:
            _keep_failure(result, name, sources[name], error, strict, stops=True)
        except BaseException as error:  # usually an import inside the function
            _keep_failure(result, name, result.plugins.pop(name), error, strict)
    result.plugin = HERE
    observers = {name: manager.get_plugin(name) for name in result.plugins if name not in BUILTINS}
    result.observers = {name: plugin for name, plugin in observers.items() if stage_hooks(manager, plugin)}
    return result


def _register_entry(
    manager: pluggy.PluginManager, result: Registry, entry: metadata.EntryPoint, sources: dict[str, str], strict: bool
) -> None:
    source = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
    try:
        if entry.name in sources:
            raise RegistrationError(
                f"plugin {entry.name!r} is offered by both {sources[entry.name]} and {source} ({entry.value}); "
                f"uninstall one or set {DISABLE}={entry.name}"
            )
        sources[entry.name] = source
        plugin = entry.load()
        attach(manager, entry.name, plugin)
        if answered := answers(manager, plugin):
            manager.unregister(plugin)
            raise RegistrationError(exclusive_answer(entry.name, answered[0]))
    except RegistrationError as error:
        _keep_failure(result, entry.name, source, error, strict, stops=True)
        return
    except BaseException as error:  # a plugin may even try to end the process
        _keep_failure(result, entry.name, source, error, strict)
        return
    result.plugins[entry.name] = source
    logger().debug("plugin.loaded", plugin=entry.name, distribution=source)


def _keep_failure(
    result: Registry, name: str, source: str, error: BaseException, strict: bool, stops: bool = False
) -> None:
    """Record a failure; raise it instead if ``strict``, for a built-in plugin, or to end the process."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        raise error
    if strict or source == BUILT_IN:
        if stops:
            raise error
        raise RegistrationError(f"plugin {name!r} ({source}) failed to load: {error!r}") from error
    result.failures.append(Failure(name, source, str(error) if stops else repr(error), stops))
    logger().warning("plugin.load_failed", plugin=name, distribution=source, error=repr(error))
