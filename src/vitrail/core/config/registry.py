"""Registry of classes and files by slot and name, with the plugin that each came from."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from attrs import frozen

from vitrail.comm.backend import check_backend
from vitrail.core.method.registration import SLOTS, misfits
from vitrail.errors import ConfigError, RegistrationError, nearest, shortened

FILE_SLOTS = {"methods": "a TOML file", "models": "a diffusers folder"}
HERE = "this process"  # origin of what is registered by hand, e.g. in a notebook
KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@frozen
class Entry:
    """A registered class or file, and the plugin that it comes from."""

    slot: str
    name: str
    value: type | Path
    plugin: str

    def declared(self, member: str) -> frozenset[str]:
        """Return the ``needs`` or ``offers`` that the class declares."""
        declared: frozenset[str] = getattr(self.value, member)
        return declared


@frozen
class Failure:
    """A plugin that could not be loaded or registered.

    Attributes:
        plugin: Name of the plugin.
        distribution: Name and version of its distribution.
        error: What is wrong.
        stops: Whether it blocks every run: one of its names is taken or a class does not fit. A plugin that cannot be
            imported only matters when one of its names is requested.
    """

    plugin: str
    distribution: str
    error: str
    stops: bool = False


class Registry:
    """Everything that plugins offer. Filled once per process by ``discovery``."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}  # by slot and name
        self._of_class: dict[type, list[Entry]] = {}  # of every class, those that were replaced among them
        self.plugins: dict[str, str] = {}  # name -> distribution and version
        self.failures: list[Failure] = []
        self.observers: dict[str, object] = {}  # plugins with hooks of a run, by name
        self.plugin = HERE  # the plugin whose hook is running; set by discovery

    def add(self, slot: str, name: str, cls: type) -> None:
        """Register a strategy or backbone class.

        Args:
            slot: One of ``patching``, ``guidance``, ``masking``, ``fusion``, ``prompting``, ``rectification``,
                ``upscaler``, ``backbones``, ``comm``, ``metrics``, ``features``, ``references``.
            name: Kebab-case, as written in a config file.
            cls: A frozen attrs class with the members of the slot's protocol. A notebook cell that is run again
                replaces its old class by the new one.

        Raises:
            RegistrationError: If the slot is unknown, the name is taken or the class is unfit.
        """
        where = f"plugin {self.plugin!r}: {slot} {name!r}"
        if slot not in SLOTS:
            raise RegistrationError(f"{where}: no such slot{nearest(slot, SLOTS)}")
        if not isinstance(cls, type):
            raise RegistrationError(f"{where}: register the class, not an instance; remove the `()` of {cls!r}")
        _refuse_name(where, name)
        if unfit := misfits(slot, cls):
            raise RegistrationError(f"{where}: {'; '.join(unfit)}")
        try:
            attrs.resolve_types(cls)
        except NameError as error:
            raise RegistrationError(
                f"{where}: an annotation of {cls.__name__} cannot be read: {error}; a config file needs the types of "
                "fields, so import them outside of `if TYPE_CHECKING:`"
            ) from error
        if slot == "comm":
            check_backend(where, cls)
        self._put(Entry(slot, name, cls, self.plugin))

    def add_file(self, slot: str, name: str, path: Path) -> None:
        """Register a method's TOML file (``methods``) or a model's folder (``models``).

        Args:
            slot: ``methods`` or ``models``.
            name: Kebab-case, as written in a config file.
            path: An existing file or folder.

        Raises:
            RegistrationError: If the slot is unknown, the name is taken or ill-formed, or the path does not exist.
        """
        where = f"plugin {self.plugin!r}: {slot} {name!r}"
        if slot not in FILE_SLOTS:
            raise RegistrationError(f"{where}: no such slot for files{nearest(slot, FILE_SLOTS)}")
        _refuse_name(where, name)
        if not path.exists():
            raise RegistrationError(f"{where}: {FILE_SLOTS[slot]} is expected at {path.name!r}, nothing is there")
        self._put(Entry(slot, name, path, self.plugin))

    def names(self, slot: str) -> list[str]:
        """Return the registered names of a slot, sorted."""
        return sorted(name for kind, name in self._entries if kind == slot)

    def entries(self, slot: str) -> list[Entry]:
        """Return the entries of a slot, sorted by name."""
        return [self._entries[slot, name] for name in self.names(slot)]

    def entries_of(self, cls: type) -> list[Entry]:
        """Return the entries that a class is registered as, sorted by slot and name."""
        found = (entry for entry in self._of_class.get(cls, ()) if self._entries.get((entry.slot, entry.name)) is entry)
        return sorted(found, key=lambda entry: (entry.slot, entry.name))

    def get(self, slot: str, name: str) -> type:
        """Return the class registered under a name.

        Raises:
            ConfigError: If there is none; with the nearest name and the plugins that failed to load.
        """
        value = self._find(slot, name).value
        assert isinstance(value, type)
        return value

    def path(self, slot: str, name: str) -> Path:
        """Return the file or folder registered under a name; raises as ``get`` does."""
        value = self._find(slot, name).value
        assert isinstance(value, Path)
        return value

    def name_of(self, slot: str, cls: type) -> str:
        """Return the registered name of a class.

        Raises:
            ConfigError: If the class is not registered.
        """
        for entry in self.entries_of(cls):
            if entry.slot == slot:
                return entry.name
        raise ConfigError(f"{cls.__name__} is not registered as {slot}, so it cannot be written to a file")

    def _find(self, slot: str, name: str) -> Entry:
        if (slot, name) in self._entries:
            return self._entries[slot, name]
        failed = "".join(f"; plugin {f.plugin!r} failed to load: {f.error}" for f in self.failures)
        raise ConfigError(
            f"no {slot.removesuffix('s')} named {shortened(name, 100)!r}{nearest(name, self.names(slot))}{failed}"
        )

    def refuse_broken(self) -> None:
        """Refuse to continue while registered plugins collide or do not fit.

        Raises:
            RegistrationError: Naming every one of them.
        """
        broken = [failure.error for failure in self.failures if failure.stops]
        if broken:
            raise RegistrationError("\n".join(broken))

    def _put(self, entry: Entry) -> None:
        """Add an entry; a class redefined in this process, as in a notebook, replaces the previous one."""
        known = self._entries.get((entry.slot, entry.name))
        again = known is not None and known.plugin == entry.plugin == HERE and _source(known) == _source(entry)
        if known is not None and not again:
            raise RegistrationError(
                f"{entry.slot} {entry.name!r} comes from both plugin {known.plugin!r} and plugin {entry.plugin!r}; "
                "switch one off with VITRAIL_DISABLE_PLUGINS or rename it"
            )
        self._entries[entry.slot, entry.name] = entry
        if isinstance(entry.value, type):
            self._of_class.setdefault(entry.value, []).append(entry)


def _source(entry: Entry) -> tuple[str, ...]:
    """Return the qualified name of a class, or the path of a file."""
    value = entry.value
    return (value.__module__, value.__qualname__) if isinstance(value, type) else (str(value),)


def _refuse_name(where: str, name: str) -> None:
    if not KEBAB.fullmatch(name):
        plain = "-".join(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)).lower()
        hint = f", e.g. {plain!r}" if KEBAB.fullmatch(plain) else ""
        raise RegistrationError(f"{where}: a name is lower-case words with hyphens between{hint}")
