"""A common clock for ranks on several hosts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.comm.backends.key_store import Words

PINGS = 16
PAUSE_S = 1e-4


def boot() -> str:
    """Return an id shared by processes with the same monotonic clock: the boot id, or else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def clock_offset(
    store: Words, rank: int, world_size: int, is_over: Callable[[], bool] = lambda: False, where: str | None = None
) -> float:
    """Return the seconds to add to this rank's monotonic clock to get rank 0's; collective, and blocks.

    On one host the clock is shared and nothing is measured. On another host, rank 0 answers pings through the store,
    and the ping with the shortest round trip counts.

    Args:
        store: Keys of the run's store.
        rank: This rank.
        world_size: Number of ranks.
        is_over: Whether waiting was abandoned.
        where: Id of the clock; ``boot()`` if None.

    Raises:
        TimeoutError: If ``is_over`` while another rank is awaited.
    """

    def get(key: str) -> bytes:
        while (found := store.get(key)) is None:
            if is_over():
                raise TimeoutError(f"no answer of another rank ({key})")
            time.sleep(PAUSE_S)
        return found

    here = boot() if where is None else where
    store.set(f"boot/{rank}", here)
    if rank == 0:
        for other in range(1, world_size):
            if get(f"boot/{other}") != here.encode():
                _answer(store, get, other)
        return 0.0
    return 0.0 if get("boot/0") == here.encode() else _ask(store, get, rank)


def _answer(store: Words, get: Callable[[str], bytes], other: int) -> None:
    store.set(f"clock/{other}/start", "")
    for number in range(PINGS):
        get(f"clock/{other}/ping/{number}")
        store.set(f"clock/{other}/pong/{number}", repr(time.monotonic()))


def _ask(store: Words, get: Callable[[str], bytes], rank: int) -> float:
    found = []
    get(f"clock/{rank}/start")
    for number in range(PINGS):
        sent = time.monotonic()
        store.set(f"clock/{rank}/ping/{number}", "")
        theirs = float(get(f"clock/{rank}/pong/{number}"))
        back = time.monotonic()
        found.append((back - sent, theirs - (sent + back) / 2))
    return min(found)[1]
