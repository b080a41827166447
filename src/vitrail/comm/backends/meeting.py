"""Connection of ranks to the run's store, which rank 0 hosts unless the launcher does."""

from __future__ import annotations

import atexit
import datetime
import socket
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.comm.backends.key_store import LOOPBACK, StoreClient, StoreServer, listener_at, process_name
from vitrail.comm.lifeline import GONE
from vitrail.errors import CommError

if TYPE_CHECKING:
    from vitrail.comm.environment import RankEnvironment

PAUSE_S = 0.05
REFUSED_S = 1.0  # of refused connections, after which nobody keeps torchrun's store any more
_kept: dict[tuple[str | int, ...], StoreServer] = {}  # stores hosted by this process, by run


@frozen
class MeetingPlace:
    """Address and port of the run's store."""

    address: str
    port: int


def meet(environment: RankEnvironment, timeout: float) -> StoreClient:
    """Connect to the run's store, and host it if this rank must.

    Args:
        environment: Environment of this rank.
        timeout: Timeout of the store's answer, seconds.

    Raises:
        CommError: If it does not answer, cannot be hosted here, or belongs to another run.
    """
    end = time.monotonic() + timeout
    name = process_name(environment.name)
    if environment.hosts_store:
        port = _keep(environment, name).port
        return StoreClient(_address(environment), port, environment.secret, name, timeout)
    place = MeetingPlace(_address(environment), environment.master_port)
    if environment.has_torch_store:
        place = MeetingPlace(place.address, _announced(environment, timeout))
    left = max(PAUSE_S, end - time.monotonic())
    return StoreClient(place.address, place.port, environment.secret, name, left)


def strangers(environment: RankEnvironment) -> list[str]:
    """Return the descriptions of other runs' processes that connected to the store of this process."""
    kept = _kept.get(_key(environment))
    return [] if kept is None else list(dict.fromkeys(kept.strangers))


def _address(environment: RankEnvironment) -> str:
    return LOOPBACK if environment.is_local else environment.master_addr


def _key(environment: RankEnvironment) -> tuple[str | int, ...]:
    return environment.master_addr, environment.master_port, environment.attempt, environment.secret


def _keep(environment: RankEnvironment, name: str) -> StoreServer:
    """Return the store hosted by this process, opened on the first call."""
    key = _key(environment)
    if key not in _kept:
        port = 0 if environment.has_torch_store else environment.master_port
        _kept[key] = StoreServer(listener_at(_address(environment), port), environment.secret, name)
        atexit.register(_kept[key].close)
        if environment.has_torch_store:
            _announce(environment, _kept[key].port)
    return _kept[key]


# ---------------------------------------------------------------------- torchrun's store


def _announce(environment: RankEnvironment, port: int) -> None:
    _torchs_store(environment, datetime.timedelta(seconds=60)).set(_word(environment), str(port))


def _announced(environment: RankEnvironment, timeout: float) -> int:
    """Return the port that rank 0 has published.

    Raises:
        CommError: If it is not published in time, or is not a port.
    """
    store = _torchs_store(environment, datetime.timedelta(seconds=timeout))
    end, word = time.monotonic() + timeout, _word(environment)
    while not store.check([word]):
        if time.monotonic() > end:
            raise CommError(f"rank 0 did not come within {timeout:g} s: torchrun's store has no word of it")
        time.sleep(PAUSE_S)
    text = store.get(word).decode(errors="replace")
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise CommError(f"torchrun's store says {text[:80]!r} where rank 0 writes a port; somebody else writes there")
    return int(text)


def _word(environment: RankEnvironment) -> str:
    return f"vitrail/{environment.attempt}/port"


def _refuse_gone(address: str, port: int) -> None:
    """Refuse a store of torchrun at whose port nobody listens; torchrun opens it before it starts a rank.

    Raises:
        CommError: If connections are refused for ``REFUSED_S``; torch's client would go on for the whole timeout.
    """
    end = time.monotonic() + REFUSED_S
    while True:
        try:
            with socket.create_connection((address, port), timeout=REFUSED_S):
                return
        except ConnectionRefusedError as error:
            if time.monotonic() > end:
                raise CommError(f"nobody listens at {address}:{port}, torchrun's store: {GONE}") from error
        except OSError:
            return  # unreachable for now, or no such name: torch's client goes on, and says why
        time.sleep(PAUSE_S)


def _torchs_store(environment: RankEnvironment, timeout: datetime.timedelta) -> Any:
    """Return a temporary connection to torchrun's store."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = environment.master_addr, environment.master_port
    _refuse_gone(address, port)
    try:
        return TCPStore(address, port, None, False, timeout, wait_for_workers=False)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise CommError(f"torchrun's store at {address}:{port} does not answer ({reason})") from error
