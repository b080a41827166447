"""Communication between ranks: a library of its own, which imports torch and nothing else of Vitrail.

Programs are written against ``Communicator``, ``Channel`` and ``Work``; a backend provides a ``Backend`` and a
``Transport``.
"""

from __future__ import annotations

from typing import Any

import pluggy

from vitrail.comm.backend import Backend, JoiningBackend
from vitrail.comm.backends.gloo import Gloo
from vitrail.comm.backends.in_process import InProcess, solo
from vitrail.comm.backends.nccl import Nccl
from vitrail.comm.backends.simulated import Simulated
from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.message_header import odd_one_out
from vitrail.comm.outcome import first_cause, guarded
from vitrail.comm.protocol import Channel, Communicator, Work
from vitrail.comm.transport import Abort, Part, Posting, Transport, Witness

hookimpl = pluggy.HookimplMarker("vitrail")


@hookimpl
def vitrail_register(registry: Any) -> None:
    """Register the built-in backends."""
    registry.add("comm", "in-process", InProcess)
    registry.add("comm", "simulated", Simulated)
    registry.add("comm", "gloo", Gloo)
    registry.add("comm", "nccl", Nccl)


__all__ = [
    "TIMEOUT_S",
    "Abort",
    "Backend",
    "Channel",
    "Communicator",
    "Gloo",
    "InProcess",
    "JoiningBackend",
    "Nccl",
    "Part",
    "Posting",
    "RankCommunicator",
    "Simulated",
    "Transport",
    "Witness",
    "Work",
    "first_cause",
    "guarded",
    "odd_one_out",
    "solo",
]
