"""Snapshots of a network, to check that nothing is left in it: hooks, attributes, forwards, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


@frozen(eq=False)
class Traces:
    """Snapshot of a network.

    Attributes:
        modules: Name, module and hooks of every module.
        attributes: Names of the instance attributes of every module.
        forwards: The forward function of every module.
        values: Copies of weights and buffers.
    """

    modules: tuple[Any, ...]
    attributes: tuple[Any, ...]
    forwards: tuple[Any, ...]
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: torch.nn.Module) -> Traces:
        """Take a snapshot of a network."""
        every = dict(network.named_modules())
        modules = tuple((name, module, *(dict(getattr(module, h)) for h in HOOKS)) for name, module in every.items())
        attributes = tuple([key for key in vars(module) if key not in HOOKS] for module in every.values())
        values = {name: value.clone() for name, value in network.state_dict().items()}
        return cls(modules, attributes, tuple(module.forward for module in every.values()), values)

    def check(self, network: torch.nn.Module) -> None:
        """Compare the network with the snapshot.

        Raises:
            AssertionError: Naming what has changed.
        """
        now = Traces.of(network)
        assert now.modules == self.modules, "hooks, or modules, are left in the network"
        assert now.attributes == self.attributes, "attributes are left on the network's modules"
        assert now.forwards == self.forwards, "a module of the network has another forward"
        changed = [name for name, value in self.values.items() if not torch.equal(value, now.values[name])]
        assert not changed, f"weights are changed: {', '.join(changed[:3])}"
