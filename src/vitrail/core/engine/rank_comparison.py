"""Whether all ranks still have the same values, and if not, what made them differ.

All but the network's forwards is computed on every rank alike. A strategy that draws from torch's global random state,
keeps something on itself or asks for its rank breaks this in silence: every rank goes on with a canvas of its own, and
rank 0's is saved. So each result of a step leaves a digest of its bits. All digests since the last comparison are
folded to one number, which ranks exchange before they share out the forwards of a stage's first, second, third, fifth
and ninth step and so on, and at the end. If it differs, they exchange them one by one, and the first that differs names
step, stage and strategy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from vitrail.errors import DriftError, ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.schedule.step import Step

ODD = 0x1E3779B97F4A7C15  # of the golden ratio, below 2^63
REMEDY = (
    "What ranks compute alike must be a function of its arguments: draw random numbers from the run's streams, keep "
    "nothing on a strategy (state goes in and comes out), and let nothing depend on the rank, the thread or the time. "
    "Ranks on unlike processors or builds of torch can differ in the last bits, too; run them on alike ones."
)


@frozen(eq=False)
class Noted:
    """One result.

    Attributes:
        step: Where the run stood.
        what: In words, e.g. the strategy that gave it.
        digest: Of its bits; a tensor, Int64[Tensor, ""], is not read before the comparison.
    """

    step: Step
    what: str
    digest: int | Tensor


@define(eq=False)
class RankComparison:
    """The results since the last comparison.

    Attributes:
        exchange: The ranks; where there is one alone, nothing is noted.
        noted: In the order in which they were made.
    """

    exchange: Exchange
    noted: list[Noted] = field(factory=list)

    def note(self, step: Step, what: str, value: Any) -> None:
        """Note a result that every rank must have alike.

        Args:
            step: Where the run stands.
            what: In words.
            value: A tensor on any device, or plain data that ``repr`` tells apart.
        """
        import torch

        if self.exchange.is_alone:
            return
        digest = digest_of(value) if isinstance(value, torch.Tensor) else _signed(repr(value).encode())
        self.noted.append(Noted(step, what, digest))

    def compare(self) -> None:
        """Compare all ranks' results so far, and forget them; collective.

        Raises:
            DriftError: Naming the first step, stage and strategy where ranks differ, on every rank.
        """
        if self.exchange.is_alone:
            return
        noted, self.noted = self.noted, []
        digests = _read_sync(noted)
        folded = _signed(b"".join(digest.to_bytes(8, "little", signed=True) for digest in digests))
        every = self._every([len(digests), folded], [2] * self.exchange.world_size)
        if all(each == every[0] for each in every):
            return
        each_one = self._every(digests, [count for count, _ in every])
        number = next(i for i in range(max(map(len, each_one))) if len({tuple(one[i : i + 1]) for one in each_one}) > 1)
        raise DriftError(_difference_text(noted, number, [tuple(one[number : number + 1]) for one in each_one]))

    def _every(self, own: list[int], lengths: list[int]) -> list[list[int]]:
        """Whole numbers of every rank, on every rank."""
        import torch

        rank, ranks = self.exchange.rank, range(self.exchange.world_size)
        out = {each: torch.zeros(lengths[each], dtype=torch.int64, device="cpu") for each in ranks}
        mine = {rank: torch.tensor(own, dtype=torch.int64, device="cpu")}
        self.exchange.communicator.all_gather_into(out, mine, {each: each for each in ranks})
        return [out[each].tolist() for each in ranks]


def digest_of(tensor: Tensor) -> Tensor:
    """A checksum of a tensor's bits that knows where they stand, on its device, Int64[Tensor, ""].

    Sums over rows and over columns, each by a weight of its own, modulo 2^64: exact, in any order of adding.

    Args:
        tensor: Of any type, Any[Tensor, "*lead h w"].
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
    """Digests as numbers, those of tensors by one transfer a device; waits for it."""
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
    """The message for the first result that differs."""
    sides: dict[tuple[int, ...], list[int]] = {}
    for rank, digest in enumerate(found):
        sides.setdefault(digest, []).append(rank)
    groups = " against ".join(f"rank{'s' * (len(side) > 1)} {', '.join(map(str, side))}" for side in sides.values())
    first = noted[min(number, len(noted) - 1)]
    where = f"step {first.step.index + 1} of {first.step.num_steps} (stage {first.step.stage + 1})"
    return f"ranks differ at {where} in what came from {first.what}: {groups}. {REMEDY}"


DIGEST = 16  # bytes


def agree(communicator: Communicator, facts: Mapping[str, str]) -> None:
    """Compare facts over all ranks, once.

    Args:
        communicator: Collective: every rank calls.
        facts: What must be alike, e.g. composition, weights, versions; the same names on every rank.

    Raises:
        ProtocolError: Naming what differs, and the ranks on each side.
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
