"""Rows among ranks: each computes its share, and the answers go to all while the next ones are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, frozen

from vitrail.comm.partition import assign, rounds
from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.parallel import begun
from vitrail.core.method.protocols import Predicted, Rows

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Channel, Communicator

K = TypeVar("K")
Forward = Callable[[Rows], Predicted]
Record = Callable[[Rows], AbstractContextManager[object]]


@frozen(eq=False)
class Exchange:
    """The ranks of a run.

    Attributes:
        communicator: Of this rank.
        speeds: Relative speeds of the ranks.
        workers: Micro-batches or strips that this rank may compute side by side; it reaches no bit.
    """

    communicator: Communicator
    speeds: tuple[float, ...] = field(converter=as_tuple)
    workers: int = 1

    @classmethod
    def among(cls, communicator: Communicator, speeds: Sequence[float] = (), workers: int = 1) -> Exchange:
        """Ranks of the given speeds, of one speed if none are given."""
        return cls(communicator, speeds or [1.0] * communicator.world_size, workers)

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.communicator.world_size == 1

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.communicator.rank

    @property
    def world_size(self) -> int:
        """Of all ranks."""
        return self.communicator.world_size

    def gather(self, mine: Mapping[K, Tensor], like: Mapping[K, Tensor], owner: Mapping[K, int]) -> Mapping[K, Tensor]:
        """Every rank's tensors on every rank; ``like`` has their shapes and types, on the ``meta`` device."""
        import torch

        if self.is_alone:
            return mine
        out = {
            key: torch.empty(each.shape, dtype=each.dtype, device=self.communicator.device)
            for key, each in like.items()
        }
        self.communicator.all_gather_into(out, mine, owner)
        return out

    def share(
        self, batches: Sequence[Rows], forward: Forward, recorded: Record = nullcontext, workers: int = 1
    ) -> list[Predicted]:
        """Every rank computes some micro-batches and receives the others' answers.

        Args:
            batches: In canonical order.
            forward: One through the network.
            recorded: Entered while this rank waits for an answer of its own.
            workers: Micro-batches that this rank computes side by side.
        """
        first = _captured(batches)
        owners = assign([len(rows.views) for rows in batches], self.speeds, first)
        turns = rounds(owners, self.communicator.world_size, first)
        own = [unit for units in turns for unit in units if owners[unit] == self.communicator.rank]
        with begun(forward, [batches[unit] for unit in own], workers) as asked:
            ask = dict(zip(own, asked, strict=True))

            def answer(unit: int) -> Predicted:
                with recorded(batches[unit]):
                    return ask[unit]()

            if self.is_alone:
                return [answer(unit) for unit in range(len(batches))]
            return self._gathered(batches, owners, turns, answer)

    def _gathered(
        self,
        batches: Sequence[Rows],
        owners: Sequence[int],
        turns: Sequence[Sequence[int]],
        answer: Callable[[int], Predicted],
    ) -> list[Predicted]:
        """The answers of all ranks, sent round by round while the next ones are computed."""
        answers: dict[int, Any] = {}
        works = []
        for units in turns:
            out = {key: like for unit in units for key, like in _wire(unit, batches[unit], None).items()}
            mine: dict[tuple[int, str], Tensor] = {}
            for unit in (unit for unit in units if owners[unit] == self.communicator.rank):
                mine = _wire(unit, batches[unit], answer(unit))
            owner = {key: owners[key[0]] for key in out}
            works.append(self.communicator.all_gather_into(out, mine, owner, async_op=True))
            answers |= out
        for work in works:
            assert work is not None
            work.wait()
        return [_unwire(unit, batches[unit], answers) for unit in range(len(batches))]


def whole_views(batches: Sequence[Rows], speeds: Sequence[float], branches: int, first_view: int) -> tuple[int, ...]:
    """Owners of micro-batches such that no view is divided.

    Args:
        batches: In canonical order, of ``row_batch`` rows each.
        speeds: Relative speeds of the ranks.
        branches: Rows of a view.
        first_view: Whose rows come first.
    """
    size = len(batches[0].views)
    together = math.lcm(size, branches) // size  # micro-batches that hold whole views
    groups = [range(begin, min(begin + together, len(batches))) for begin in range(0, len(batches), together)]
    costs = [float(sum(len(batches[unit].views) for unit in group)) for group in groups]
    owners = assign(costs, speeds, first_view * branches // size // together)
    return tuple(owner for owner, group in zip(owners, groups, strict=True) for _ in group)


def _captured(batches: Sequence[Rows]) -> int | None:
    """The micro-batch whose attention maps are wanted: the key view's."""
    return next((unit for unit, rows in enumerate(batches) if rows.capture), None)


def _wire(unit: int, rows: Rows, answer: Predicted | None) -> dict[tuple[int, str], Tensor]:
    """An answer as tensors to send, or tensors of that shape to receive into if there is none."""
    output = rows.model_input.new_empty(rows.model_input.shape) if answer is None else answer.model_output
    keys = {(unit, "output"): output}
    if rows.capture:
        batch = len(rows.model_input) // len(rows.views)
        flags = rows.model_input.new_zeros(2)
        maps = rows.model_input.new_zeros(batch, 1, *rows.model_input.shape[-2:])
        if answer is not None:
            flags = flags.new_tensor([answer.attention is not None, answer.has_content])
            maps = maps if answer.attention is None else answer.attention.to(maps.dtype)
        keys |= {(unit, "flags"): flags, (unit, "maps"): maps}
        if rows.words:
            told = None if answer is None else answer.words
            empty = rows.model_input.new_zeros(batch, rows.words, *rows.model_input.shape[-2:])
            keys[unit, "words"] = empty if told is None else told.to(empty.dtype)
    return keys


def _unwire(unit: int, rows: Rows, answers: dict[Any, Tensor]) -> Predicted:
    """An answer from what was received."""
    predicted = Predicted(answers[unit, "output"])
    if rows.capture:
        has_attention, has_content = (bool(flag) for flag in answers[unit, "flags"].tolist())
        maps = answers[unit, "maps"] if has_attention else None
        words = answers.get((unit, "words")) if has_attention else None
        predicted = evolve(predicted, attention=maps, has_content=has_content, words=words)
    return predicted


class Control:
    """Whether to stop: rank 0 is asked, and all ranks act on its answer of the step before."""

    def __init__(self, exchange: Exchange):
        self._communicator, self._count = exchange.communicator, 0
        self._channel: Channel | None = None

    def decide(self, wanted: bool) -> bool:
        """Whether this step is not to be done, alike on all ranks."""
        import torch

        if self._communicator.world_size == 1:
            return wanted
        if self._channel is None:
            self._channel = self._communicator.channel("stop", src=0, shape=(1,), dtype=torch.uint8)
        self._channel.publish(
            self._count,
            torch.tensor([wanted], dtype=torch.uint8, device=self._communicator.device)
            if self._communicator.rank == 0
            else None,
        )
        self._count += 1
        return self._count > 1 and bool(self._channel.fetch(self._count - 2))
