"""The transport over process groups of ``torch.distributed``, made without its global state.

Gloo's properties determine the design. It checks nothing, so every operation carries headers. A ``wait`` on its work
cannot be interrupted, so works are polled, never waited for. An operation that was given up still completes later and
writes into its buffers, so these are private and discarded. A group cannot be destroyed while an operation is pending,
so after an abort groups are kept until the process ends.
"""

from __future__ import annotations

import ctypes
import datetime
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vitrail.comm.backends.key_store import LOOPBACK
from vitrail.comm.backends.meeting import meet, strangers
from vitrail.comm.backends.process_group_clock import clock_offset
from vitrail.comm.backends.process_group_posting import GatheredPosting, Lane, SourcesPosting, Transfer
from vitrail.comm.backends.process_group_store import LOST, StoreLine
from vitrail.comm.backends.torch_store import torch_store
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.environment import RankEnvironment
from vitrail.comm.lifeline import GONE, hold
from vitrail.comm.transport import Abort, Part, Posting, Witness
from vitrail.errors import CommAborted, CommTimeout

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

T = TypeVar("T")
FIRST_SLICE_S, LONGEST_SLICE_S = 1e-4, 1e-2  # polling interval of a wait
START_S = 30.0  # least time to load libraries, where a launcher ends stopped or dead ranks
CLOSE_S = 2.0  # for the last transfers of a clean end
THREADS = 4  # of a group: number of concurrent operations, at least the kept versions of a channel
GROUP_TIMEOUT = datetime.timedelta(days=30)  # of a group itself; never reached


class ProcessGroupTransport:
    """A rank's end of process groups, one pair for each ordering domain.

    Args:
        environment: Rank of this process and address of the store.
        namespace: Prefix of the store's keys, one per communicator; equal on all ranks.
        timeout: Seconds to wait for the other ranks when a domain is opened.
        device: Device of the parts of collectives: gloo on the CPU, NCCL on a CUDA device. Headers and channels
            always use gloo on the CPU. NCCL has not been run by the authors.

    Raises:
        CommError: If the store cannot be reached.
        CommTimeout: If a rank does not connect in time.
    """

    def __init__(
        self, environment: RankEnvironment, namespace: str, timeout: float, device: torch.device | None = None
    ):
        import torch

        self.rank, self.world_size = environment.rank, environment.world_size
        self.device = torch.device("cpu") if device is None else device
        self.backend = "gloo" if self.device.type == "cpu" else "nccl"
        self._timeout, self._offset = timeout, 0.0
        self._lanes: dict[str, Lane] = {}
        self._groups: dict[str, list[ProcessGroup]] = {}  # by domain
        self._flying: dict[str, list[Transfer]] = {}  # by domain
        self._closed = False
        self._environment = environment
        hold()
        begin = time.monotonic()
        self._client = meet(environment, timeout)
        self._words = self._client.words.within(namespace)
        is_watched = environment.store_is_hosted and not environment.has_torch_store
        lost = Abort(self.rank, GONE) if is_watched else Abort(0, LOST)
        self._line = StoreLine(self._words, self.rank, self.world_size, lost)
        self._line.clock = self.clock
        limit = max(timeout, START_S) if is_watched else timeout
        try:
            self._offset = self._together(
                lambda is_over: clock_offset(self._words, self.rank, self.world_size, is_over),
                "the start",
                limit,
                time.monotonic() - begin,
            )
        except BaseException:
            self._line.close()
            self._client.close()
            raise

    # ------------------------------------------------------------------ time and waiting

    def clock(self) -> float:
        """Return seconds of rank 0's monotonic clock."""
        return time.monotonic() + self._offset

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Poll at growing intervals; see ``Transport.wait``."""
        pause, end = FIRST_SLICE_S, math.inf if deadline is None else deadline
        while not ready() and self._line.abort is None:
            left = end - self.clock()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(1.2 * pause, LONGEST_SLICE_S)

    # ------------------------------------------------------------------ domains and operations

    def open(self, domain: str) -> None:
        """Create the domain's groups; waits for all ranks.

        Raises:
            CommAborted: If the run was revoked.
            CommTimeout: If a rank does not call it in time.
        """
        make = self._gloo if self.device.type == "cpu" else self._nccl
        groups = self._together(
            lambda is_over: (self._gloo(f"{domain}/control", is_over), make(f"{domain}/payload", is_over)),
            f"opening {domain!r}",
            self._timeout,
        )
        for group in groups:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))  # see close
        self._groups[domain] = list(groups)
        self._lanes[domain] = Lane(*groups, self.device, self._line.broken)

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> Posting:
        """Start the operation's transfers; see ``Transport.post``."""
        lane = self._lanes[domain]
        self._line.posted += 1
        posting: GatheredPosting | SourcesPosting
        if witness == "all":
            posting = GatheredPosting(lane, self.rank, self.world_size, header, parts, mine)
        else:
            posting = SourcesPosting(lane, self.rank, header, parts, mine)
        under_way = [t for t in self._flying.get(domain, []) if not (t.is_done() or t.has_failed)]
        self._flying[domain] = under_way + posting.transfers
        return posting

    def _together(self, action: Callable[[Callable[[], bool]], T], what: str, limit: float, spent: float = 0.0) -> T:
        """Run an uninterruptible action with all ranks, once all are ready, in a thread that can be abandoned.

        Args:
            action: Called with a function that returns whether it was abandoned.
            what: Name of the action, in messages and in the store.
            limit: Timeout, seconds.
            spent: Seconds of the timeout already used.

        Raises:
            CommAborted: If the run was revoked.
            CommTimeout: If a rank does not join in time.
        """
        results: list[T] = []
        over = threading.Event()

        def run() -> None:
            try:
                results.append(action(over.is_set))
            except Exception as error:
                self._line.broken(f"{what}: {error}")

        deadline = self.clock() + limit - spent
        self.wait(lambda: self._line.absent(what) == [], deadline)
        missing = self._line.absent(what)
        if missing == [] and self._line.abort is None:
            threading.Thread(target=run, name="process-group", daemon=True).start()
            self.wait(lambda: bool(results), deadline)
        over.set()
        if self._line.abort is None and not results:
            culprit, message = self._late(what, limit, missing)
            late = CommTimeout(message)
            late.is_known = self._line.revoke(Abort(culprit, message))
            raise late
        if self._line.abort is not None:
            raise CommAborted(self._line.abort.culprit, self._line.abort.reason)
        return results[0]

    def _late(self, what: str, limit: float, missing: list[int] | None) -> tuple[int, str]:
        """Return the rank that a timeout blames, and the message.

        Args:
            what: Name of the action.
            limit: Timeout, seconds.
            missing: Ranks that did not join; None if the store does not answer.
        """
        if missing is None:
            own = self._environment
            keeper = (
                "rank 0" if own.has_torch_store or not own.store_is_hosted else "the process that started the ranks"
            )
            culprit = self.rank if keeper != "rank 0" else 0
            return culprit, f"{what}: {keeper}, which keeps the run's store, did not answer within {limit:g} s"
        culprit = missing[0] if missing else self._line.behind()[0]
        message = f"{what}: rank(s) {', '.join(map(str, missing)) or culprit} did not come within {limit:g} s"
        if what == "the start" and self._environment.name.startswith("SLURM"):
            message += (
                f"; SLURM says that there are {self.world_size} tasks: write srun before the command to start them all"
            )
        for stranger in strangers(self._environment):
            message += (
                f"; {stranger} came to port {self._environment.master_port}: set MASTER_PORT to one of this run's own"
            )
        return culprit, message

    def _gloo(self, name: str, is_over: Callable[[], bool]) -> ProcessGroup:
        from torch import distributed

        gloo: Any = distributed.ProcessGroupGloo
        store = self._torch_store(name, is_over)
        if not self._environment.is_local:
            group = gloo(store, self.rank, self.world_size, GROUP_TIMEOUT)  # reads GLOO_SOCKET_IFNAME
        else:
            options = gloo._Options()  # the only way to set the address
            options._devices = [gloo.create_device(hostname=LOOPBACK)]
            options._timeout, options._threads = GROUP_TIMEOUT, THREADS
            group = gloo(store, self.rank, self.world_size, options)
        return group  # type: ignore[no-any-return]

    def _nccl(self, name: str, is_over: Callable[[], bool]) -> ProcessGroup:
        import torch
        from torch import distributed

        nccl: Any = distributed.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = GROUP_TIMEOUT
        group = nccl(self._torch_store(name, is_over), self.rank, self.world_size, options)
        group.broadcast(torch.zeros(1, dtype=torch.float32, device=self.device), 0).wait()  # connects, which blocks
        return group  # type: ignore[no-any-return]

    def _torch_store(self, name: str, is_over: Callable[[], bool]) -> Store:
        store = torch_store(self._words.within(name), is_over)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))  # its group may use it for its whole lifetime
        return store

    # ------------------------------------------------------------------ the run's life

    def abort(self, abort: Abort) -> None:
        """Write the abort into the store, where the first one counts."""
        self._line.revoke(abort)

    def aborted(self) -> Abort | None:
        """Return the abort as last read from the store."""
        return self._line.abort

    def note(self, text: str) -> None:
        """Record this rank's position in the store."""
        self._line.tell(text)

    def behind(self) -> tuple[int, str]:
        """Return the rank that is behind, and its last note."""
        return self._line.behind()

    def close(self) -> None:
        """Destroy the groups after a clean end.

        Each group has an extra reference, so that it is never destroyed by the garbage collector: that would wait for
        pending operations, perhaps for ever.
        """
        if self._closed:
            return
        self._closed = self._line.is_closing = True
        if self._line.abort is None and self._is_quiet(list(self._groups), "closed"):
            self._destroy(list(self._groups))
        self._line.close()
        self._client.close()

    def shut(self, domains: Sequence[str]) -> None:
        """Destroy the groups of domains that every rank has closed."""
        if self._line.abort is None and self._is_quiet(domains, f"shut {domains[0]}"):
            self._destroy(domains)

    def _destroy(self, domains: Sequence[str]) -> None:
        for domain in domains:
            self._lanes.pop(domain, None)
            self._flying.pop(domain, None)
            groups = self._groups.pop(domain, [])
            while groups:
                group = groups.pop()
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(group))
                del group

    def _is_quiet(self, domains: Sequence[str], what: str) -> bool:
        """Whether no transfer of these domains is pending on any rank, after waiting at most ``CLOSE_S``."""
        flying = [transfer for domain in domains for transfer in self._flying.get(domain, [])]
        deadline = self.clock() + CLOSE_S
        self.wait(lambda: all(transfer.is_done() for transfer in flying), deadline)
        self.wait(lambda: self._line.absent(what) == [], deadline)
        return all(transfer.is_done() for transfer in flying) and self._line.absent(what) == []


def join(
    environment: RankEnvironment,
    namespace: str,
    run_id: str,
    *,
    timeout: float,
    checksums: bool,
    device: torch.device | None = None,
) -> RankCommunicator:
    """Return a communicator over process groups; a failed attempt releases its resources.

    Args:
        environment: Rank of this process and address of the store.
        namespace: Prefix of the store's keys, one per communicator; equal on all ranks.
        run_id: Equal on all ranks.
        timeout: Timeout of one wait, seconds.
        checksums: Whether messages carry a checksum.
        device: See ``ProcessGroupTransport``.
    """
    transport = ProcessGroupTransport(environment, namespace, timeout, device)
    try:
        return RankCommunicator(transport, run_id, timeout=timeout, checksums=checksums)
    except BaseException:
        transport.close()
        raise
