"""Imports of diffusers without packages that a plan does not use, for a process of Vitrail's own.

They take longer than all that a plan computes; it needs networks without weights and schedulers only. What is done here
holds for a whole process, so that it is for the command line, not for a library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")
UNPLANNED = (  # what diffusers imports if it is there: adapters, quantisers, some samplers, text encoders
    "accelerate",
    "peft",
    "scipy",
    "transformers",
    "transformers.utils.quantization_config",
)
COMPILER = "torch._dynamo"


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
