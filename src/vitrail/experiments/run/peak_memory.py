"""Peak memory of a block, above that before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    import torch

STATM = Path("/proc/self/statm")
PAUSE_S = 0.02  # between two readings of the resident memory


@define
class Peak:
    """Peak memory of a ``with`` block.

    Attributes:
        bytes: Peak above the memory in use before the block; None during the block, and where it cannot be measured.
    """

    bytes: int | None = None

    @classmethod
    @contextmanager
    def watch(cls, device: torch.device) -> Iterator[Peak]:
        """Measure a block: by the allocator's statistics on an accelerator, by polling the resident memory on a CPU.

        On a CPU, garbage is first collected and freed memory that the C library holds for reuse returned to the system:
        otherwise a picture after a larger one would seem to need less memory, or none.
        """
        import torch

        peak = cls()
        if device.type != "cpu":
            module = torch.get_device_module(device)
            if not hasattr(module, "max_memory_allocated"):
                yield peak
                return
            before = module.memory_allocated(device)
            module.reset_peak_memory_stats(device)
            yield peak
            peak.bytes = module.max_memory_allocated(device) - before
            return
        if not STATM.exists():
            yield peak
            return
        with _resident(peak):
            yield peak


@contextmanager
def _resident(peak: Peak) -> Iterator[None]:
    import os

    _give_back()
    page, done = os.sysconf("SC_PAGE_SIZE"), threading.Event()
    before = most = _pages()

    def look() -> None:
        nonlocal most
        while not done.wait(PAUSE_S):
            most = max(most, _pages())

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peak.bytes = (max(most, _pages()) - before) * page


def _give_back() -> None:
    """Return the memory of garbage to the system, where the C library can (glibc's ``malloc_trim``)."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _pages() -> int:
    return int(STATM.read_text().split()[1])
