"""Hooks on the modules of a network for the duration of a forward; the network is not changed otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from vitrail.errors import CapabilityError

SHOWN = 3  # names in a message
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
After = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]


@frozen(eq=False)
class Hook:
    """A change of a module's inputs or outputs; a returned None changes nothing.

    Attributes:
        name: Dotted name of the module in the network.
        module: The module itself.
        before: From (module, positional, keyword arguments) to the new arguments.
        after: From (module, positional, keyword arguments, output) to the new output.
    """

    name: str
    module: Any
    before: Before | None = None
    after: After | None = None


@contextmanager
def attached(network: Any, hooks: Sequence[Hook], strategy: str) -> Iterator[None]:
    """Apply hooks to the forwards of this thread while the context is open.

    Changes of one module are nested: the last ``before`` belongs to the first ``after``. Ranks may be threads that
    share a network and are at different steps, so a hook does nothing in the forward of another thread. Hooks are
    removed on exit, also if the forward raised.

    Args:
        network: The module that is called.
        hooks: Hooks on modules inside it, or on itself.
        strategy: Name of the strategy, for messages.

    Raises:
        CapabilityError: On entry if a module is inside a compiled one; on exit if one was not called.
    """
    refuse_compiled(network, (hook.name for hook in hooks), strategy)
    thread, called, handles = threading.get_ident(), set[str](), []

    def own(hook: Hook, change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if threading.get_ident() != thread:
                return None  # another thread may see this hook while it is being removed, with fewer arguments
            called.add(hook.name)
            return change(*arguments)

        return run

    try:
        for hook in hooks:
            if hook.before is not None:
                handles.append(hook.module.register_forward_pre_hook(own(hook, hook.before), with_kwargs=True))
            if hook.after is not None:
                run = own(hook, hook.after)
                handles.append(hook.module.register_forward_hook(run, with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
    _refuse_uncalled([hook.name for hook in hooks if hook.name not in called], strategy)


def refuse_compiled(network: Any, names: Iterable[str], strategy: str) -> None:
    """Refuse modules inside a compiled one, whose code is generated once and ignores later hooks.

    Args:
        network: The module that is called.
        names: Dotted names of the modules.
        strategy: Name of the strategy, for messages.

    Raises:
        CapabilityError: Naming the compiled module.
    """
    for path, module in _on_the_way(network, names):
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise CapabilityError(
                f"{strategy} changes modules inside {path or 'a network'} that torch.compile has compiled, and such "
                f"code sees no temporary change; use it uncompiled, or leave {strategy} out"
            )


def refuse_fused(layers: Iterable[tuple[str, Any]], strategy: str, does: str) -> None:
    """Refuse attention whose projections are fused, so that no module gives the queries alone.

    Args:
        layers: Dotted names and attention modules.
        strategy: Name of the strategy, for messages.
        does: What it does with queries, as in "scales queries".

    Raises:
        CapabilityError: Naming the first such layer.
    """
    fused = [name for name, attention in layers if type(attention.processor).__name__.startswith("Fused")]
    if fused:
        raise CapabilityError(
            f"{strategy} {does}, but the projections of {fused[0]} are fused; undo it with "
            f"`pipe.unfuse_qkv_projections()`, or leave {strategy} out"
        )


def _on_the_way(network: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the network and every module on the paths to the named ones, each once, with their names."""
    found = {"": network}
    yield "", network
    for name in names:
        path = ""
        for part in filter(None, name.split(".")):
            above, path = found[path], f"{path}.{part}" if path else part
            if path not in found:
                found[path] = getattr(above, part)
                yield path, found[path]


def _refuse_uncalled(missing: Sequence[str], strategy: str) -> None:
    """Refuse hooks that were not called, since the change did not take place."""
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise CapabilityError(
            f"{strategy} did not take place: the forward did not call {', '.join(missing[:SHOWN])}{more}; something "
            "skips or replaces these modules (fused or compiled layers, a cache, a processor of one's own): switch it "
            f"off, or choose other sites, or leave {strategy} out"
        )
