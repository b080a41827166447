"""One rank as a process of its launcher: its environment, its streams, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

from vitrail.comm.lifeline import VARIABLE, Lifeline

TAIL_LINES, TAIL_BYTES = 12, 4000  # of a rank's own messages, at most


class LaunchedRank:
    """A rank's process; what it writes is kept, except that the first has its launcher's streams.

    It is in a session of its own: what the terminal sends comes through the launcher.

    Args:
        command: Program and arguments.
        variables: Its environment.
        first: Rank 0, if this is another.

    Raises:
        OSError: If the command cannot be started.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], first: LaunchedRank | None):
        self._first = first
        self._line = Lifeline()
        self._stack = ExitStack()
        streams: dict[str, Any] = {}
        self._voice: IO[bytes] | None = None  # what it writes to stderr
        if first is not None:
            self._voice, silent = (self._stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))  # noqa: SIM115
            streams = {"stdin": subprocess.DEVNULL, "stdout": silent, "stderr": self._voice}
        with self._line.theirs as theirs:
            self._process = subprocess.Popen(
                list(command),
                env={**variables, VARIABLE: str(theirs.fileno())},
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                **streams,
            )

    def __enter__(self) -> LaunchedRank:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_at_once()
        self._line.cut()
        self._stack.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_here(self) -> bool:
        """Whether it has begun to decide what signals do."""
        return self._line.is_here

    @property
    def is_done(self) -> bool:
        """Whether nobody needs it any more: rank 0 when all is written, others when rank 0 has what they computed."""
        return self._line.is_done if self._first is None else self._first._line.is_alone

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """SIGINT, which rank 0 hears for all."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def let_go(self) -> None:
        """Have it end by itself at once, if it listens."""
        self._line.cut()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def end_at_once(self) -> None:
        """Kill and reap it, if it still runs."""
        if self.poll() is None:
            self.kill()
            self._process.wait()

    def last_lines(self) -> list[str]:
        """What it wrote last to stderr; of rank 0 the user has seen it."""
        if self._voice is None:
            return []
        size = self._voice.seek(0, os.SEEK_END)
        self._voice.seek(max(0, size - TAIL_BYTES))
        return self._voice.read().decode(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
