"""Launch the ranks of a command as processes; a failure ends all of them, and none outlives the launcher."""

from __future__ import annotations

import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

from attrs import define, field

from vitrail.comm.backends.key_store import LOOPBACK, StoreServer, listener_at, process_name
from vitrail.comm.backends.launch_overseer import GRACE_S, INTERRUPTED, Ending, Overseer
from vitrail.comm.backends.launched_rank import LaunchedRank
from vitrail.comm.environment import HOSTED, SECRET, RankEnvironment, namespace

USAGE = 2  # exit code for a wrong option or file, explained by the rank


def launch(
    command: Sequence[str],
    world_size: int,
    *,
    timeout: float = math.inf,
    grace: float = GRACE_S,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run a command once per rank on this host; return the exit code of the whole.

    Rank 0 has this process's standard streams. If a rank fails, the others are informed through the store, which this
    process hosts, and ended; then one message names the rank and the reason. Ctrl-C is passed on to rank 0; a second
    one ends all ranks at once. However this process ends, the ranks end with it.

    Args:
        command: Program and arguments, equal for all ranks, which differ in their environment.
        world_size: Number of ranks.
        timeout: Seconds for which a rank may be stopped (SIGSTOP) before the run ends.
        grace: Seconds for ranks to end by themselves after one has failed.
        variables: Base environment; this process's own if None.

    Raises:
        OSError: If the command cannot be started.
    """
    with ExitStack() as stack:
        secret = secrets.token_hex(16)
        server = StoreServer(listener_at(), secret, process_name("ranks of vitrail --ranks"))
        stack.callback(server.close)
        ranks = _Ranks(stack)
        stack.callback(ranks.end_at_once)
        stack.enter_context(_Signals(ranks))
        known = os.environ if variables is None else variables
        for rank in range(world_size):
            ranks.start(command, rank_variables(rank, world_size, server.port, secret, known))
        words = server.words.within(namespace(RankEnvironment(0, world_size, 0, LOOPBACK, server.port), 0))
        overseer = Overseer(ranks.processes, words, grace, timeout)
        ending = overseer.watch(ranks.go_on)
        sys.stderr.write(_ending_text(overseer, ending, ranks))
        return ranks.asked_to_end if ranks.asked_to_end is not None else _exit_code(overseer, ending, ranks)


@define
class _Ranks:
    """The processes, and what signals have requested."""

    stack: ExitStack
    processes: list[LaunchedRank] = field(factory=list)
    interrupts: int = 0
    asked_to_end: int | None = None  # requested exit code

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the next rank."""
        first = self.processes[0] if self.processes else None
        self.processes.append(self.stack.enter_context(LaunchedRank(command, environment, first)))

    def go_on(self) -> bool:
        """Whether no signal has requested to end all ranks."""
        return self.asked_to_end is None

    def interrupt(self) -> None:
        """Handle Ctrl-C: the first interrupts rank 0, the second, or one before rank 0 is ready, ends all ranks."""
        self.interrupts += 1
        if self.interrupts > 1 or not self.processes or not self.processes[0].is_here:
            self.asked_to_end = INTERRUPTED
        else:
            self.processes[0].interrupt()

    def end_at_once(self) -> None:
        """Kill all ranks."""
        for process in self.processes:
            process.end_at_once()


class _Signals:
    """Signal handlers of the launching process while ranks run."""

    def __init__(self, ranks: _Ranks):
        self._ranks = ranks
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # by nohup
            for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
                self._before[number] = signal.signal(number, self._heard)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._ranks.interrupt()
        else:
            self._ranks.asked_to_end = 128 + number


def rank_variables(
    rank: int, world_size: int, port: int, secret: str = "", variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a rank: this process's, with the rank's number and addresses.

    Its operators have as many threads as they would have in this process, since their number affects the last bits of a
    large network's results. The threads of several ranks outnumber the cores, so they must sleep while they wait. The
    run's secret is passed here and not on the command line, which all users of the machine can read.

    Args:
        rank: Number of the rank.
        world_size: Number of ranks.
        port: Port of the store on this host.
        secret: Secret of the run.
        variables: Base environment; this process's own if None.
    """
    known = os.environ if variables is None else variables
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": port,
        HOSTED: 1,
        SECRET: secret,
        "OMP_WAIT_POLICY": known.get("OMP_WAIT_POLICY", "passive"),
    }
    other = {name: value for name, value in known.items() if not name.startswith("TORCHELASTIC_")}
    return other | {name: str(value) for name, value in own.items()}


def _exit_code(overseer: Overseer, ending: Ending | None, ranks: _Ranks) -> int:
    """Return 0; 130 after Ctrl-C; 2 if the ranks refused an option or file; else 1."""
    if ending is None:
        return 0
    code = overseer.codes.get(ending.culprit)
    if ranks.interrupts or code in (INTERRUPTED, -signal.SIGINT):
        return INTERRUPTED
    return USAGE if code == USAGE else 1


def _ending_text(overseer: Overseer, ending: Ending | None, ranks: _Ranks) -> str:
    """Return the final message, "" if rank 0 has printed it."""
    if ranks.asked_to_end is not None:
        name = "SIGINT" if ranks.interrupts else signal.Signals(ranks.asked_to_end - 128).name
        return f"vitrail: stopped at once by {name}; files that were complete are kept\n"
    if ending is None:
        late = overseer.late().items()
        return "".join(
            f"vitrail: rank {rank}, when all was done: {how}; what was written is whole\n" for rank, how in late
        )
    code = overseer.codes.get(0)
    has_reported = overseer.has_ended_itself(0) and code in (1, USAGE, INTERRUPTED)
    if has_reported and (ending.culprit == 0 or ranks.interrupts):
        return ""
    where = f", last seen at {ending.note}" if ending.note and ending.note not in ending.reason else ""
    text = f"vitrail: rank {ending.culprit} ended the run: {ending.reason}{where}\n"
    is_interrupted = overseer.codes.get(ending.culprit) == INTERRUPTED
    lines = [] if is_interrupted else ranks.processes[ending.culprit].last_lines()
    if any(line.strip() and ending.reason not in line for line in lines):
        text += f"What rank {ending.culprit} wrote last:\n" + "".join(f"  {line}\n" for line in lines)
    return text
