"""Rows that are computed twice in one forward, so that a copy of them can lend something to the layers of the other.

The copies go through the network behind all other rows and are dropped at its end, so whoever calls the network sees
as many rows as were asked. They lie in the forward of the row itself, so it does not matter how rows are shared out.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from attrs import field, frozen

from vitrail.backbones.rectification.module_hooks import Hook
from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import Branch
    from vitrail.core.method.protocols import Forward

OF_THE_CALL = ("cross_attention_kwargs", "return_dict")  # inputs of a U-Net that have no entry for each row


@frozen
class CopiedRows:
    """The rows of a forward, some of which have a copy.

    Attributes:
        count: Number of entries of the network's input, rows times pictures.
        copied: Entries that have a copy; the first copy is entry ``count``.
    """

    count: int
    copied: tuple[int, ...] = field(converter=as_tuple, default=())

    @classmethod
    def of_branch(cls, forward: Forward, branch: Branch) -> Self:
        """Return the rows of a forward, with a copy of each row of a branch."""
        rows = forward.rows
        batch = len(rows.model_input) // len(rows.views)
        chosen = [row for row, each in enumerate(rows.branches) if each == branch]
        return cls(len(rows.model_input), [row * batch + i for row in chosen for i in range(batch)])

    @property
    def others(self) -> tuple[int, ...]:
        """Entries that have no copy, and the copies."""
        plain = (entry for entry in range(self.count) if entry not in self.copied)
        return (*plain, *range(self.count, self.count + len(self.copied)))

    def through(self, network: Any) -> Hook:
        """Return a hook that gives the network the copies, and takes them from its output."""
        names = list(inspect.signature(network.forward).parameters)

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            given = {name: self._with_copies(name, value) for name, value in kwargs.items()}
            return tuple(self._with_copies(*pair) for pair in zip(names, args, strict=False)), given

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0][: self.count], *output[1:])
            return replace(output, sample=output.sample[: self.count])

        return Hook("", network, before, after)

    def lent(self, name: str, layer: Any) -> Hook:
        """Return a hook by which entries with a copy get what a layer gives the copy.

        Args:
            name: Dotted name of the layer.
            layer: Its output is Float[Tensor, "parts*entries tokens width"], with any number of parts of every entry,
                such as windows.
        """
        order = list(range(self.count + len(self.copied)))
        for number, entry in enumerate(self.copied):
            order[entry] = self.count + number

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            parts = output.reshape(-1, len(order), *output.shape[1:])
            return parts[:, order].flatten(0, 1)

        return Hook(name, layer, after=after)

    def _with_copies(self, name: str, value: Any) -> Any:
        import torch

        if name in OF_THE_CALL:
            return value
        if isinstance(value, dict):
            return {key: self._with_copies(key, each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self._with_copies(name, each) for each in value])
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == self.count:
            return torch.cat([value, value[list(self.copied)]])
        return value
