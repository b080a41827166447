"""Slot and name to class, with the plugin it came from."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import frozen

from vitrail.comm.backend import check_backend
from vitrail.errors import ConfigError, RegistrationError, nearest

MEMBERS: dict[str, tuple[str, ...]] = {  # what a class of each slot must have
    "patching": ("needs", "granularity", "patch"),
    "guidance": ("needs", "point", "init", "guide"),
    "masking": ("needs", "request", "init", "mask"),
    "fusion": ("needs", "fuse"),
    "prompting": ("needs", "request", "texts"),
    "rectification": ("needs", "check", "apply"),
    "backbones": ("pipelines", "offers", "defaults", "load", "adopt"),
    "comm": ("run",),
    "metrics": ("columns", "eye", "needs_reference", "gather"),
    "features": ("extract", "probabilities"),
    "references": ("pictures", "digest"),
}
FILE_SLOTS = {"methods": "a TOML file", "models": "a diffusers folder"}
POINTS = ("before", "inputs", "branches", "views", "canvas", "after")


@frozen
class Entry:
    """One registered thing and where it comes from."""

    slot: str
    name: str
    value: type | Path
    plugin: str


@frozen
class Failure:
    """A plugin that could not be loaded."""

    plugin: str
    distribution: str
    error: str


class Registry:
    """Everything that plugins offer. Filled once per process by ``discovery``."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        self.plugins: dict[str, str] = {}  # name -> distribution and version
        self.failures: list[Failure] = []
        self.plugin = "?"  # whose hook is running; set by discovery

    def add(self, slot: str, name: str, cls: type) -> None:
        """Register a strategy or backbone class.

        Args:
            slot: One of ``patching``, ``guidance``, ``masking``, ``fusion``, ``prompting``, ``rectification``,
                ``backbones``, ``comm``, ``metrics``, ``features``, ``references``.
            name: Kebab-case, as written in a config file.
            cls: A frozen attrs class with the members of the slot's protocol.

        Raises:
            RegistrationError: If the slot is unknown, the name is taken or the class is unfit.
        """
        where = f"plugin {self.plugin!r}: {slot} {name!r}"
        if slot not in MEMBERS:
            raise RegistrationError(f"{where}: no such slot{nearest(slot, MEMBERS)}")
        if not isinstance(cls, type):
            raise RegistrationError(f"{where}: register the class, not an instance; remove the `()` of {cls!r}")
        missing = [member for member in MEMBERS[slot] if not hasattr(cls, member)]
        if missing:
            raise RegistrationError(f"{where}: {cls.__name__} lacks {', '.join(missing)}")
        if not _is_frozen(cls):
            raise RegistrationError(f"{where}: {cls.__name__} must be a frozen attrs class (decorate with @frozen)")
        try:
            attrs.resolve_types(cls)
        except NameError as error:
            raise RegistrationError(
                f"{where}: an annotation of {cls.__name__} cannot be read: {error}; a config file needs the types of "
                "fields, so import them outside of `if TYPE_CHECKING:`"
            ) from error
        if slot == "guidance" and cls.point not in POINTS:  # type: ignore[attr-defined]
            raise RegistrationError(f"{where}: {cls.__name__}.point must be one of {', '.join(POINTS)}")
        if slot == "comm":
            check_backend(where, cls)
        self._put(Entry(slot, name, cls, self.plugin))

    def add_file(self, slot: str, name: str, path: Path) -> None:
        """Register a method's TOML file (``methods``) or a model's folder (``models``)."""
        where = f"plugin {self.plugin!r}: {slot} {name!r}"
        if slot not in FILE_SLOTS:
            raise RegistrationError(f"{where}: no such slot for files{nearest(slot, FILE_SLOTS)}")
        if not path.exists():
            raise RegistrationError(f"{where}: {FILE_SLOTS[slot]} is expected at {path.name!r}, nothing is there")
        self._put(Entry(slot, name, path, self.plugin))

    def names(self, slot: str) -> list[str]:
        """Registered names of a slot, sorted."""
        return sorted(name for kind, name in self._entries if kind == slot)

    def entries(self, slot: str) -> list[Entry]:
        """Everything in a slot, sorted by name."""
        return [self._entries[slot, name] for name in self.names(slot)]

    def get(self, slot: str, name: str) -> type:
        """The class behind a name.

        Raises:
            ConfigError: With the nearest name, all names, and plugins that failed to load.
        """
        value = self._find(slot, name).value
        assert isinstance(value, type)
        return value

    def path(self, slot: str, name: str) -> Path:
        """The file or folder behind a name; raises as ``get`` does."""
        value = self._find(slot, name).value
        assert isinstance(value, Path)
        return value

    def name_of(self, slot: str, cls: type) -> str:
        """The registered name of a class; a class that is not registered has none, which is an error."""
        for entry in self.entries(slot):
            if entry.value is cls:
                return entry.name
        raise ConfigError(f"{cls.__name__} is not registered as {slot}, so it cannot be written to a file")

    def _find(self, slot: str, name: str) -> Entry:
        if (slot, name) in self._entries:
            return self._entries[slot, name]
        failed = "".join(f"; plugin {f.plugin!r} failed to load: {f.error}" for f in self.failures)
        raise ConfigError(f"no {slot.removesuffix('s')} named {name!r}{nearest(name, self.names(slot))}{failed}")

    def _put(self, entry: Entry) -> None:
        known = self._entries.get((entry.slot, entry.name))
        if known is not None:
            raise RegistrationError(
                f"{entry.slot} {entry.name!r} comes from both plugin {known.plugin!r} and plugin {entry.plugin!r}; "
                "switch one off with VITRAIL_DISABLE_PLUGINS or rename it"
            )
        self._entries[entry.slot, entry.name] = entry


def _is_frozen(cls: type) -> bool:
    """Whether attrs refuses any assignment; a class that is only ``@define`` validates and assigns."""
    if not attrs.has(cls):
        return False
    try:
        object.__new__(cls).frozen = True  # type: ignore[attr-defined]
    except attrs.exceptions.FrozenInstanceError:
        return True
    except (AttributeError, TypeError):
        return False
    return False
