"""Ranks as processes with one CUDA device each; collectives use NCCL."""

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
    """Ranks as processes with one CUDA device each, chosen by the local rank.

    The parts of collectives use NCCL; headers and channels use gloo on the CPU, where waits can be bounded and no
    kernel waits for a peer. This has not been run on a CUDA device yet: only the error cases are tested.
    """

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program, which must be picklable, in one process per rank; return the results in the order of ranks.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator.
            run_id: Equal on all ranks.

        Raises:
            CommError: If there are fewer CUDA devices than ranks.
            BaseException: What the program raised on the rank that failed first.
        """
        from vitrail.comm.backends.process_group_spawn import run_spawned

        cuda_device(world_size - 1)
        return run_spawned(self, world_size, program, run_id)

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """Return the communicator of a process that another program has launched.

        Raises:
            CommError: If there is no CUDA device for this rank, or the ranks do not find each other.
        """
        from vitrail.comm.backends.process_group import join

        device, place = cuda_device(environment.local_rank), next_namespace(environment)
        return join(environment, place, run_id, timeout=self.timeout, checksums=self.checksums, device=device)


def cuda_device(index: int) -> torch.device:
    """Return the device of a local rank, and make it torch's current one.

    Raises:
        CommError: If this torch has no CUDA or no NCCL, or the host too few devices.
    """
    import torch
    from torch import cuda, distributed  # noqa: TID251 - the only module of comm that queries devices

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
