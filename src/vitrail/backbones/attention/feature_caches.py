"""Networks that cache earlier forwards: caches of diffusers, and replaced forwards.

diffusers' caches are stateful hooks. Some keep their state by the name of a context (``cache_context``), so that each
view and branch can have its own; others have one state for all forwards. A replaced ``forward``, such as DeepCache sets
on blocks of a U-Net, may keep state if it refers to mutable objects.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from attrs import define
from torch import nn

from vitrail.core.engine.memory_backoff import is_out_of_memory
from vitrail.core.method.backbone import ForwardCaching
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import CapabilityError, OutOfMemory

if TYPE_CHECKING:
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step

REGISTRY = "_diffusers_hook"  # attribute with diffusers' hooks of a module
LIBRARIES = ("accelerate.", "diffusers.", "torch.")  # replaced forwards of these are hooks or compiled code
PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.BuiltinFunctionType)
CONSTANT = (
    *PLAIN,
    torch.dtype,
    torch.device,
    torch.Tensor,
    nn.Module,
)  # immutable, or part of the network


def find_kept(*networks: Any) -> ForwardCaching | None:
    """Describe the cache of earlier forwards in networks; None if there is none.

    Args:
        networks: The denoising network first; None for a missing one.
    """
    hooks = [(name, hook) for name, hook, _ in _stateful(*networks)]
    if hooks:
        name, hook = hooks[0]
        by_name = all(_by_name(each) for _, each in hooks) and not any(True for _ in _stateful(*networks[1:]))
        remedy = "switch the cache off (disable_cache of the network, or remove its hooks), or use method 'direct'"
        return ForwardCaching(where=f"{type(hook).__name__} in {name or 'the network'}", by_name=by_name, remedy=remedy)
    for name, module in _modules(*networks):
        forward = vars(module).get("forward")
        if forward is not None and not _is_of_library(forward) and _can_keep(forward, set()):
            where = f"the replaced forward of {name or 'the network'}"
            remedy = "put the network's own forward back (e.g. DeepCache's helper.disable()), or use method 'direct'"
            return ForwardCaching(where=where, by_name=False, remedy=remedy)
    return None


def forget(*networks: Any) -> None:
    """Empty diffusers' caches, so that the next forward is a first one."""
    for _, hook, module in list(_stateful(*networks)):
        hook.reset_state(module)


@define(eq=False)
class FeatureCaches:
    """The forwards of one picture through a network with a cache.

    Attributes:
        networks: The denoising network first.
        by_name: See ``ForwardCaching``.
        number: Number of this picture, unique in this process.
        is_alone: Whether no other thread uses the networks.
        place: Phase and stage of the last forward.
    """

    networks: tuple[Any, ...]
    by_name: bool
    number: int
    is_alone: Callable[[], bool]
    place: tuple[int, int] | None = None

    def forward(self, rows: MicroBatch, step: Step, ask: Callable[[MicroBatch], ModelOutput]) -> ModelOutput:
        """Compute a micro-batch: row by row, each with its own cache, or at once if there is only one cache.

        Args:
            rows: The micro-batch.
            step: Position of the run.
            ask: One forward of the network.

        Raises:
            OutOfMemory: If it does not fit; cached forwards cannot be repeated in parts.
            CapabilityError: If another thread would use the only cache.
        """
        self._enter(step)
        try:
            if not self.by_name:
                return ask(rows)
            return ModelOutput.join([self._row(row, step, ask) for row in rows.cut(1)])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            what = f"out of memory at step {step.index + 1}, in a network that remembers earlier forwards"
            raise OutOfMemory(f"{what}, so that it cannot be cut and tried again: {error}") from error

    def _enter(self, step: Step) -> None:
        """Empty the caches at every new picture and stage, whose views differ.

        Raises:
            CapabilityError: If another thread would use the only cache.
        """
        alone = self.is_alone()
        if not alone and not self.by_name:
            raise CapabilityError(
                "the network remembers earlier forwards in one place for all, but another thread runs it at the same "
                "time; run one after another"
            )
        if self.place != (step.phase, step.stage) and alone:
            forget(*self.networks)
        self.place = (step.phase, step.stage)

    def _row(self, row: MicroBatch, step: Step, ask: Callable[[MicroBatch], ModelOutput]) -> ModelOutput:
        name = f"{self.number}/{self.place}/{row.views[0]}/{row.branches[0]}"
        with named(self.networks[0], name, step):
            return ask(row)


@contextmanager
def named(network: Any, name: str, step: Step) -> Iterator[None]:
    """Run a forward with a named entry of the caches; a network without hooks is left without.

    Args:
        network: The network.
        name: Name of the entry.
        step: Position of the run.
    """
    from diffusers import CacheMixin

    known = inspect.signature(CacheMixin.cache_context).parameters
    facts = {"step_index": step.phase_step, "num_inference_steps": step.phase_num_steps, "sigma": step.sigma}
    more = facts if any(each.kind is each.VAR_KEYWORD for each in known.values()) else {}
    had = REGISTRY in vars(network)
    try:
        with CacheMixin.cache_context(network, name, **more):
            yield
    finally:
        if not had:
            vars(network).pop(REGISTRY, None)


def _modules(*networks: Any) -> Iterator[tuple[str, Any]]:
    for network in networks:
        if network is not None:
            yield from network.named_modules()


def _stateful(*networks: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (layer's name, hook, layer) of every stateful hook."""
    for name, module in _modules(*networks):
        if REGISTRY in vars(module):
            yield from ((name, hook, module) for hook in vars(module)[REGISTRY].hooks.values() if hook._is_stateful)


def _by_name(hook: Any) -> bool:
    """Whether a hook's state belongs to a context, which diffusers recognises by its class."""
    from diffusers.hooks.hooks import StateManager

    return any(isinstance(value, StateManager) for value in vars(hook).values())


def _is_of_library(forward: Any) -> bool:
    """Whether a module's replaced forward comes from a library's hook or a compiler."""
    inner = forward.func if isinstance(forward, functools.partial) else forward
    return str(getattr(inner, "__module__", "")).startswith(LIBRARIES) or hasattr(forward, "_torchdynamo_orig_callable")


def _can_keep(value: Any, seen: set[int]) -> bool:
    """Whether a function refers to something mutable besides modules and tensors."""
    if id(value) in seen or isinstance(value, CONSTANT):
        return False
    seen.add(id(value))
    if isinstance(value, functools.partial):
        return any(_can_keep(each, seen) for each in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, types.MethodType):
        return _can_keep(value.__self__, seen) or _can_keep(value.__func__, seen)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return any(_can_keep(each, seen) for each in (*cells, *(value.__defaults__ or ())))
    if isinstance(value, tuple):
        return any(_can_keep(each, seen) for each in value)
    return True


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
