"""Ranks as processes with a CUDA device each; collectives go through NCCL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.backends.gloo import next_namespace
from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.environment import RankEnvironment
from vitrail.errors import CommError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@frozen(kw_only=True)
class Nccl:
    """Ranks as processes with a CUDA device each, chosen by the local rank.

    The parts of collectives travel by NCCL; headers and channels by gloo on CPU, where a wait can be bounded
    and no kernel waits for a peer. Nothing of this has been run on a CUDA device yet: only the refusals are
    tested.
    """

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program, which can be pickled, in a process for every rank, and give the results by rank.

        Raises:
            CommError: If there are fewer CUDA devices than ranks.
            BaseException: What the culprit raised.
        """
        from vitrail.comm.backends.process_group_spawn import run_spawned

        cuda_device(world_size - 1)
        return run_spawned(self, world_size, program, run_id)

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """The communicator of a process that something else has launched.

        Raises:
            CommError: If there is no CUDA device for this rank, or the ranks do not find each other.
        """
        from vitrail.comm.backends.process_group import join

        device, place = cuda_device(environment.local_rank), next_namespace(environment)
        return join(environment, place, run_id, timeout=self.timeout, checksums=self.checksums, device=device)


def cuda_device(index: int) -> torch.device:
    """The device of a local rank.

    Raises:
        CommError: If this torch has no CUDA or no NCCL, or the host too few devices.
    """
    import torch
    from torch import cuda, distributed  # noqa: TID251 - the one place of comm that asks for a device

    there = cuda.device_count() if cuda.is_available() else 0
    if index >= there:
        raise CommError(
            f"the nccl backend needs a CUDA device for each rank: local rank {index} has none, torch sees {there}; "
            'start fewer ranks, or use the backend "gloo", which needs none'
        )
    if not distributed.is_nccl_available():
        raise CommError('this torch was built without NCCL; install one for CUDA, or use the backend "gloo"')
    cuda.set_device(index)
    return torch.device("cuda", index)
