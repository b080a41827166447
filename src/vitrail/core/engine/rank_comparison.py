"""Comparison of results between ranks, to find what made them differ.

Everything but the network's forwards is computed on every rank. A strategy that draws from torch's global random state,
keeps state on itself or depends on its rank breaks this silently: every rank continues with a canvas of its own, and
rank 0's is saved. So a digest is recorded of each result of a step. All digests since the last comparison are combined
to one number, which ranks exchange before they assign the forwards of a stage's first, second, third, fifth and ninth
step and so on, and at the end. If it differs, they exchange the digests one by one, and the first that differs names
step, stage and strategy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from vitrail.errors import DriftError, ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.schedule.step import Step

ODD = 0x1E3779B97F4A7C15  # from the golden ratio, below 2^63
REMEDY = (
    "What ranks compute alike must be a function of its arguments: draw random numbers from the run's streams, keep "
    "nothing on a strategy (state goes in and comes out), and let nothing depend on the rank, the thread or the time. "
    "Ranks on unlike processors or builds of torch can differ in the last bits, too; run them on alike ones."
)


@frozen(eq=False)
class Noted:
    """One recorded result.

    Attributes:
        step: Position of the run.
        what: Origin of the result, e.g. the name of a strategy.
        digest: Digest of its bits; a tensor, Int64[Tensor, ""], is not read before the comparison.
    """

    step: Step
    what: str
    digest: int | Tensor


@define(eq=False)
class RankComparison:
    """The results recorded since the last comparison.

    Attributes:
        exchange: The ranks; with a single one, nothing is recorded.
        noted: The results, in order.
    """

    exchange: Exchange
    noted: list[Noted] = field(factory=list)

    def note(self, step: Step, what: str, value: object) -> None:
        """Record a result that must be equal on every rank.

        Args:
            step: Position of the run.
            what: Origin of the result for the message.
            value: A tensor on any device, or plain data that ``repr`` distinguishes.
        """
        import torch

        if self.exchange.is_alone:
            return
        digest = digest_of(value) if isinstance(value, torch.Tensor) else _signed(repr(value).encode())
        self.noted.append(Noted(step, what, digest))

    def note_digest(self, step: Step, what: str, digest: Tensor) -> None:
        """As ``note``, for a digest from ``digest_of``; those of disjoint parts add up to that of the whole.

        Args:
            step: Position of the run.
            what: Origin of the result for the message.
            digest: Int64[Tensor, ""].
        """
        if not self.exchange.is_alone:
            self.noted.append(Noted(step, what, digest))

    def compare(self, before: Step | None = None) -> None:
        """Compare the results of all ranks since the last comparison; collective.

        Args:
            before: The step that comes next, if the ranks agree on their speeds on this occasion.

        Raises:
            DriftError: Naming the first step, stage and strategy where ranks differ, on every rank.
        """
        if self.exchange.is_alone:
            return
        noted, self.noted = self.noted, []
        digests = _read_sync(noted)
        folded = _signed(b"".join(digest.to_bytes(8, "little", signed=True) for digest in digests))
        meter = None if before is None else self.exchange.meter
        own = [len(digests), folded, 0 if meter is None else meter.own()]
        every = self._every(own, [len(own)] * self.exchange.world_size)
        if all(each[:2] == every[0][:2] for each in every):
            if before is not None and meter is not None:
                meter.agree(before, [speed for _, _, speed in every], self.exchange.communicator.trace)
            return
        each_one = self._every(digests, [count for count, _, _ in every])
        number = next(i for i in range(max(map(len, each_one))) if len({tuple(one[i : i + 1]) for one in each_one}) > 1)
        raise DriftError(_difference_text(noted, number, [tuple(one[number : number + 1]) for one in each_one]))

    def _every(self, own: list[int], lengths: list[int]) -> list[list[int]]:
        """Return the integers of every rank, on every rank."""
        import torch

        rank, ranks = self.exchange.rank, range(self.exchange.world_size)
        out = {each: torch.zeros(lengths[each], dtype=torch.int64, device="cpu") for each in ranks}
        mine = {rank: torch.tensor(own, dtype=torch.int64, device="cpu")}
        self.exchange.communicator.all_gather_into(out, mine, {each: each for each in ranks})
        return [out[each].tolist() for each in ranks]


def digest_of(tensor: Tensor) -> Tensor:
    """Return a position-dependent checksum of a tensor's bits, on its device, Int64[Tensor, ""].

    Weighted sums over rows and over columns modulo 2^64: exact, whatever the order of addition. It is linear, so the
    digests of a tensor's parts, each with zeros elsewhere, add up to the tensor's.

    Args:
        tensor: Any dtype, Any[Tensor, "*lead h w"].
    """
    import torch

    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach()
    bits = bits if bits.ndim > 1 else bits.reshape(1, -1)
    bits = bits.view(sizes[bits.element_size()]) if bits.dtype not in sizes.values() else bits
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for axis in (-1, -2):
        sums = bits.sum(axis, dtype=torch.int64).flatten()
        weights = torch.arange(1, len(sums) + 1, dtype=torch.int64, device=bits.device) * (ODD + 2 * axis) | 1
        total = total * 3 + (sums * weights).sum()
    return total


def _read_sync(noted: list[Noted]) -> list[int]:
    """Return the digests as integers, those of tensors by one transfer per device; waits for it."""
    import torch

    found: list[int] = [each.digest if isinstance(each.digest, int) else 0 for each in noted]
    there: dict[torch.device, list[int]] = {}
    for number, each in enumerate(noted):
        if not isinstance(each.digest, int):
            there.setdefault(each.digest.device, []).append(number)
    for numbers in there.values():
        values = torch.stack([noted[number].digest for number in numbers]).tolist()  # type: ignore[misc]
        for number, value in zip(numbers, values, strict=True):
            found[number] = value
    return found


def _signed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _difference_text(noted: list[Noted], number: int, found: list[tuple[int, ...]]) -> str:
    """Return the message for the first result that differs."""
    sides: dict[tuple[int, ...], list[int]] = {}
    for rank, digest in enumerate(found):
        sides.setdefault(digest, []).append(rank)
    groups = " against ".join(f"rank{'s' * (len(side) > 1)} {', '.join(map(str, side))}" for side in sides.values())
    first = noted[min(number, len(noted) - 1)]
    where = f"step {first.step.index + 1} of {first.step.num_steps} (stage {first.step.stage + 1})"
    return f"ranks differ at {where} in what came from {first.what}: {groups}. {REMEDY}"


DIGEST = 16  # bytes


def agree(communicator: Communicator, facts: Mapping[str, str]) -> None:
    """Compare facts over all ranks, once; collective.

    Args:
        communicator: This rank's communicator.
        facts: What must be equal, e.g. composition, weights, versions; the same names on every rank.

    Raises:
        ProtocolError: Naming the facts that differ, and the ranks on each side.
    """
    import torch

    names = sorted(facts)
    own = b"".join(hashlib.blake2b(facts[name].encode(), digest_size=DIGEST).digest() for name in names)
    ranks = range(communicator.world_size)
    digests = {rank: torch.zeros(len(own), dtype=torch.uint8, device=communicator.device) for rank in ranks}
    mine = {communicator.rank: torch.frombuffer(bytearray(own), dtype=torch.uint8)}
    communicator.all_gather_into(digests, mine, {rank: rank for rank in ranks})
    problems = []
    for index, name in enumerate(names):
        sides: dict[bytes, list[int]] = {}
        for rank in ranks:
            sides.setdefault(bytes(digests[rank][index * DIGEST :][:DIGEST].tolist()), []).append(rank)
        if len(sides) > 1:
            groups = " against ".join(f"rank{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for s in sides.values())
            problems.append(f"{name}: {groups}; rank {communicator.rank} has {facts[name][:200]}")
    if problems:
        communicator.abort("ranks differ in " + "; ".join(problems))
        raise ProtocolError("ranks differ in\n  " + "\n  ".join(problems) + "\nStart all ranks alike.")
