"""Imports of diffusers and transformers without packages that nothing here uses, for a process of Vitrail's own.

Both import scipy for a few classes' sake, which takes as long as half of torch; a plan needs of diffusers networks and
schedulers only. What is done here holds for a whole process, so that it is for the command line, not for a library.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from attrs import frozen

T = TypeVar("T")
LATER = (  # (prefix of the modules that import, what they import there and use, if at all, in a call)
    ("diffusers.schedulers.", ("scipy", "scipy.stats")),
    ("transformers.loss.", ("scipy.optimize",)),
)
UNPLANNED = (  # what diffusers imports if it is there, and a plan does not need: text encoders, adapters, quantisers
    "accelerate",
    "peft",
    "transformers",
    "transformers.utils.quantization_config",
)
COMPILER, MODELS = "torch._dynamo", "transformers.models"


@frozen
class LaterAttribute:
    """A module's attribute that is imported when it is called or asked for its own attributes.

    Attributes:
        module: Name of the module.
        name: Name of the attribute, a function or a submodule.
    """

    module: str
    name: str

    def found(self) -> Any:
        """Import the module and return the attribute."""
        module = importlib.import_module(self.module)
        return getattr(module, self.name)

    def __call__(self, *given: object, **named: object) -> Any:
        """Call the attribute."""
        return self.found()(*given, **named)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the attribute."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.found(), name)


class LaterModule(ModuleType):
    """A module whose attributes are imported when they are used."""

    def __getattr__(self, name: str) -> LaterAttribute:
        """Return an attribute, not imported yet."""
        if name.startswith("__"):
            raise AttributeError(name)
        return LaterAttribute(self.__name__, name)


@contextmanager
def scipy_later() -> Iterator[None]:
    """Let the modules of ``LATER`` import scipy's when they are used; every other import is as ever."""
    plain = builtins.__import__

    def imported(name: str, *given: Any, **named: Any) -> ModuleType:
        if name.startswith("scipy") and name not in sys.modules:
            found = _later(name, *given, **named)
            if found is not None:
                return found
        return plain(name, *given, **named)

    builtins.__import__ = imported
    try:
        yield
    finally:
        builtins.__import__ = plain


def _later(name: str, *given: Any, **named: Any) -> LaterModule | None:
    """Return a module to be imported later; None where it is to be imported now. Arguments are ``__import__``'s."""
    scope, _, fromlist, level = [*given, None, None, None, None][:4]
    importer = (scope or named.get("globals") or {}).get("__name__", "")
    if level or named.get("level") or not any(importer.startswith(who) and name in what for who, what in LATER):
        return None
    return LaterModule(name if fromlist or named.get("fromlist") else name.partition(".")[0])


class Subpackages(ModuleType):
    """A package that does not list what its subpackages hold, and imports one when it is asked for."""

    def __getattr__(self, name: str) -> ModuleType:
        """Return a subpackage."""
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return importlib.import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError as error:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from error


def list_models_once() -> None:
    """Keep ``transformers.models`` from reading a thousand files for their classes, which ``transformers`` has read."""
    if MODELS in sys.modules:
        return
    spec = importlib.util.find_spec(MODELS)  # imports its parent
    if spec is not None and MODELS not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = Subpackages
        sys.modules[MODELS] = module


@contextmanager
def for_plans() -> Iterator[None]:
    """Import of diffusers what a plan needs; without effect if it is imported already.

    Afterwards pipelines cannot be loaded in this process, since diffusers looks once for the packages of ``UNPLANNED``.
    """
    if "diffusers" in sys.modules:
        yield
        return
    import torch

    hidden: dict[str, ModuleType | None] = dict.fromkeys(UNPLANNED)
    if COMPILER not in sys.modules:
        hidden[COMPILER] = torch._dynamo = _compiler()
    kept = {name: sys.modules[name] for name in hidden if name in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is how Python says that there is no such module
    try:
        with scipy_later():
            yield
    finally:
        for name, module in hidden.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        sys.modules.update(kept)
        if COMPILER in hidden:
            vars(torch).pop("_dynamo", None)


def _compiler() -> Any:
    """Return what diffusers asks torch's compiler for at its import, where nothing will be compiled."""

    def same(part: T | None = None, *given: object, **named: object) -> T | Callable[[T], T]:
        return part if part is not None else lambda part: part

    found: Any = ModuleType(COMPILER)
    found.allow_in_graph = found.disable = same
    found.eval_frame = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
    return found
