"""Start the ranks of a command as processes, and answer for them: no rank outlives a failure, none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import IO, Any

from attrs import define, field

from vitrail.comm.environment import HOSTED, RankEnvironment
from vitrail.comm.gloo import namespace
from vitrail.comm.launch_overseer import INTERRUPTED, Ending, Overseer
from vitrail.comm.process_group_store import LOOPBACK, connect, host, local_listener, within

CONNECT_S = 10.0
TAIL_LINES, TAIL_BYTES = 12, 4000  # of a rank's own messages, at most
USAGE = 2  # exit code of a wrong option or file, which the ranks have explained


def launch(command: Sequence[str], world_size: int, *, grace: float = 2.0) -> int:
    """Run a command once for each rank on this host; gives the exit code to end with.

    Rank 0 speaks for all: it has this process's standard streams. If a rank fails, the others are told through
    the store, which this process keeps, and ended; then one message says which rank it was and why. Ctrl-C is
    passed on to rank 0; a second one ends all ranks at once.

    Args:
        command: Program and arguments, alike for all ranks, which differ in their environment.
        world_size: Number of ranks.
        grace: Seconds that ranks have to end by themselves after one has failed.

    Raises:
        OSError: If the command cannot be started.
    """
    with ExitStack() as stack:
        listener = local_listener()  # ranks may call before torch is loaded here
        port = listener.getsockname()[1]
        ranks = _Ranks(stack)
        stack.callback(ranks.end_at_once)
        stack.enter_context(_Signals(ranks))
        for rank in range(world_size):
            ranks.start(command, rank, world_size, port)
        server = host(port, listener)
        overseer = _overseer(ranks, port, world_size, grace)
        ending = overseer.watch(ranks.go_on)
        del server
        if ranks.asked_to_end is not None:
            return ranks.asked_to_end
        code = _exit_code(overseer, ending, ranks.interrupts > 0)
        if ending is not None and code not in (USAGE, INTERRUPTED):
            sys.stderr.write(_message(ending, ranks))
        return code


@define
class _Ranks:
    """The processes, what they have said, and what signals have asked for."""

    stack: ExitStack
    processes: list[subprocess.Popen[bytes]] = field(factory=list)
    voices: list[IO[bytes] | None] = field(factory=list)  # stderr, by rank; rank 0 uses ours
    interrupts: int = 0
    asked_to_end: int | None = None  # an exit code

    def start(self, command: Sequence[str], rank: int, world_size: int, port: int) -> None:
        """Start a rank, in a session of its own: what the terminal sends comes through this process."""
        streams: dict[str, Any] = {}
        voice = None
        if rank > 0:
            voice, silent = (self.stack.enter_context(file) for file in (_temporary(), _temporary()))
            streams = {"stdin": subprocess.DEVNULL, "stdout": silent, "stderr": voice}
        environment = rank_variables(rank, world_size, port)
        process = subprocess.Popen(list(command), env=environment, start_new_session=True, **streams)
        self.processes.append(process)
        self.voices.append(voice)

    def go_on(self) -> bool:
        """Whether nothing has asked to end all ranks."""
        return self.asked_to_end is None

    def interrupt(self) -> None:
        """Ctrl-C: the first is for rank 0, which speaks for all, the second for everybody."""
        self.interrupts += 1
        if self.interrupts > 1:
            self.asked_to_end = INTERRUPTED
        elif self.processes and self.processes[0].poll() is None:
            self.processes[0].send_signal(signal.SIGINT)

    def end_at_once(self) -> None:
        """Whatever happened here, no rank is left behind."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


class _Signals:
    """The signals of the launching process while ranks run."""

    def __init__(self, ranks: _Ranks):
        self._ranks = ranks
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._heard)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._ranks.interrupt()
        else:
            self._ranks.asked_to_end = 128 + number


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile()


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment of a rank: this process's, and who the rank is.

    Its operators have as many threads as they would have in this process, since their number reaches the last bits of
    what a large network computes. Those of several ranks are more than the cores, so they must sleep while they wait.
    """
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": port,
        HOSTED: 1,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }
    other = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    return other | {name: str(value) for name, value in own.items()}


def _overseer(ranks: _Ranks, port: int, world_size: int, grace: float) -> Overseer:
    first = RankEnvironment(0, world_size, 0, LOOPBACK, port, store_is_hosted=True)
    store = within(connect(LOOPBACK, port, CONNECT_S), namespace(first, 0))
    return Overseer(ranks.processes, store, grace)


def _exit_code(overseer: Overseer, ending: Ending | None, interrupted: bool) -> int:
    """0; 130 after Ctrl-C; 2 if the ranks have refused what they were asked; else 1."""
    if ending is None:
        return 0
    code = overseer.codes[ending.culprit]
    if interrupted or code in (INTERRUPTED, -signal.SIGINT):
        return INTERRUPTED
    return USAGE if code == USAGE else 1


def _message(ending: Ending, ranks: _Ranks) -> str:
    """Which rank, why, where, and what it said itself unless the user has seen that."""
    where = f", last seen at {ending.note}" if ending.note else ""
    told = f"vitrail: rank {ending.culprit} ended the run: {ending.reason}{where}\n"
    voice = ranks.voices[ending.culprit]
    lines = [] if voice is None else _tail(voice)
    if any(line.strip() and ending.reason not in line for line in lines):
        told += f"What rank {ending.culprit} wrote last:\n" + "".join(f"  {line}\n" for line in lines)
    return told


def _tail(voice: IO[bytes]) -> list[str]:
    size = voice.seek(0, os.SEEK_END)
    voice.seek(max(0, size - TAIL_BYTES))
    return voice.read().decode(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
