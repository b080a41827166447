"""Agreement of all ranks on one run, before the first model call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitrail.errors import ProtocolError

if TYPE_CHECKING:
    from vitrail.comm.protocol import Communicator

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
    told = {rank: torch.zeros(len(own), dtype=torch.uint8, device=communicator.device) for rank in ranks}
    mine = {communicator.rank: torch.frombuffer(bytearray(own), dtype=torch.uint8)}
    communicator.all_gather_into(told, mine, {rank: rank for rank in ranks})
    problems = []
    for index, name in enumerate(names):
        sides: dict[bytes, list[int]] = {}
        for rank in ranks:
            sides.setdefault(bytes(told[rank][index * DIGEST :][:DIGEST].tolist()), []).append(rank)
        if len(sides) > 1:
            groups = " against ".join(f"rank{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for s in sides.values())
            problems.append(f"{name}: {groups}; rank {communicator.rank} has {facts[name][:200]}")
    if problems:
        communicator.abort("ranks differ in " + "; ".join(problems))
        raise ProtocolError("ranks differ in\n  " + "\n  ".join(problems) + "\nStart all ranks alike.")
