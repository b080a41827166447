"""Networks that change during a forward, so that threads that share one must take turns.

Offloaded weights are moved for a forward. A LoRA scale of a call is applied to the layers for the time of a forward:
two forwards at once would apply it twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

HOOKS = ("_hf_hook", "_diffusers_hook")  # attributes for forward hooks of accelerate and diffusers


def moves(*networks: Any) -> bool:
    """Whether hooks move or cast the weights of networks, or keep state between forwards."""
    return any(name in vars(module) for module in _modules(networks) for name in HOOKS)


def is_plain(network: Any) -> bool:
    """Whether a network has only layers of torch and diffusers, without hooks, so that forwards are independent."""
    return oddity(network) is None


def oddity(network: Any) -> str | None:
    """Describe the first part of a network that keeps it from being plain; None if there is none."""
    modules = dict(network.named_modules())
    for name, part in (*modules.items(), *getattr(network, "attn_processors", {}).items()):
        package = type(part).__module__.partition(".")[0]
        if package not in ("torch", "diffusers"):
            return f"{name or 'it'} is a {type(part).__name__} of {package}"
    hooked = {"forward", *HOOKS}
    for name, module in modules.items():
        if module._compiled_call_impl or "_orig_mod" in module._modules:
            return f"{name or 'it'} is compiled already"
        if module._forward_hooks or module._forward_pre_hooks or hooked & vars(module).keys():
            return f"{name or 'it'} has hooks, such as those of offloaded weights, or a forward of another library"
    return None


@contextmanager
def lasting(*networks: Any) -> Iterator[None]:
    """Leave inference mode for networks whose weights move, since weights moved within it could not be trained."""
    if not moves(*networks):
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def scales_kept(*networks: Any) -> Iterator[None]:
    """Restore the scales of LoRA layers on exit.

    A scale that is multiplied and divided by a number may change in the last bit, and diffusers resets one multiplied
    by 0 to 1, whatever it was.
    """
    kept = [(module, dict(module.scaling)) for module in _modules(networks) if _is_lora(module)]
    try:
        yield
    finally:
        for module, scaling in kept:
            module.scaling.update(scaling)


@contextmanager
def adapter_scales_kept(network: Any) -> Iterator[None]:
    """Restore the scales of a network's IP-Adapters on exit."""
    processors = getattr(network, "attn_processors", {}).values()
    kept = [(processor, copy.copy(processor.scale)) for processor in processors if hasattr(processor, "scale")]
    try:
        yield
    finally:
        for processor, scale in kept:
            processor.scale = scale


@contextmanager
def attributes_kept(pipe: Any) -> Iterator[None]:
    """Restore the attributes of a pipeline on exit, which e.g. stores the scale of a LoRA."""
    kept = dict(vars(pipe))
    try:
        yield
    finally:
        for name in [name for name, value in vars(pipe).items() if name not in kept or kept[name] is not value]:
            if name in kept:
                vars(pipe)[name] = kept[name]
            else:
                del vars(pipe)[name]


def weights_of_adapters(network: Any) -> list[str]:
    """Describe the scales of LoRA and IP-Adapters in a network, which are not parameters."""
    found = [
        f"{name} {sorted(module.scaling.items())} {list(module.active_adapters)} {module.disable_adapters}"
        for name, module in network.named_modules()
        if _is_lora(module)
    ]
    processors = getattr(network, "attn_processors", {})
    return found + [f"{name} {one.scale}" for name, one in processors.items() if hasattr(one, "scale")]


def _modules(networks: Sequence[Any]) -> list[Any]:
    return [module for network in networks if network is not None for module in network.modules()]


def _is_lora(module: Any) -> bool:
    return hasattr(module, "scale_layer") and isinstance(getattr(module, "scaling", None), dict)
