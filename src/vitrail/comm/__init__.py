"""Moving tensors between ranks: a library of its own, which knows torch and nothing else of Vitrail."""

from __future__ import annotations

from typing import Any

import pluggy

from vitrail.comm.gloo import Gloo
from vitrail.comm.in_process import InProcess, solo
from vitrail.comm.nccl import Nccl
from vitrail.comm.protocol import Channel, Communicator, Work
from vitrail.comm.simulated import Simulated

hookimpl = pluggy.HookimplMarker("vitrail")


@hookimpl
def vitrail_register(registry: Any) -> None:
    """Add the backends."""
    registry.add("comm", "in-process", InProcess)
    registry.add("comm", "simulated", Simulated)
    registry.add("comm", "gloo", Gloo)
    registry.add("comm", "nccl", Nccl)


__all__ = ["Channel", "Communicator", "Gloo", "InProcess", "Nccl", "Simulated", "Work", "solo"]
