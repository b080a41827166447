"""All that a change inside a network could leave behind: hooks, attributes, forwards, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


@frozen(eq=False)
class Traces:
    """A network as it stands.

    Attributes:
        modules: Every module by name with its hooks.
        attributes: The names of what every module has of its own.
        forwards: The function that every module calls.
        values: Weights and buffers, copied.
    """

    modules: tuple[Any, ...]
    attributes: tuple[Any, ...]
    forwards: tuple[Any, ...]
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: torch.nn.Module) -> Traces:
        """A network as it stands now."""
        every = dict(network.named_modules())
        modules = tuple((name, module, *(dict(getattr(module, h)) for h in HOOKS)) for name, module in every.items())
        attributes = tuple([key for key in vars(module) if key not in HOOKS] for module in every.values())
        values = {name: value.clone() for name, value in network.state_dict().items()}
        return cls(modules, attributes, tuple(module.forward for module in every.values()), values)

    def check(self, network: torch.nn.Module) -> None:
        """Hold the network against what it was.

        Raises:
            AssertionError: Naming what is left.
        """
        now = Traces.of(network)
        assert now.modules == self.modules, "hooks, or modules, are left in the network"
        assert now.attributes == self.attributes, "attributes are left on the network's modules"
        assert now.forwards == self.forwards, "a module of the network has another forward"
        changed = [name for name, value in self.values.items() if not torch.equal(value, now.values[name])]
        assert not changed, f"weights are changed: {', '.join(changed[:3])}"
