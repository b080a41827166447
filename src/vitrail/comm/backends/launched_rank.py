"""One rank as a child process of its launcher: its environment, its streams, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

from vitrail.comm.lifeline import VARIABLE, Lifeline

TAIL_LINES, TAIL_BYTES = 12, 4000  # limits of the messages quoted from a rank


class LaunchedRank:
    """A rank's process; its output is captured, except that the first rank has its launcher's streams.

    It runs in a session of its own, so that signals of the terminal reach it through the launcher only.

    Args:
        command: Program and arguments.
        variables: Its environment.
        first: Rank 0; None for rank 0 itself.

    Raises:
        OSError: If the command cannot be started.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], first: LaunchedRank | None):
        self._first = first
        self._line = Lifeline()
        self._stack = ExitStack()
        streams: dict[str, Any] = {}
        self._voice: IO[bytes] | None = None  # its stderr
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
        """Process id."""
        return self._process.pid

    @property
    def is_here(self) -> bool:
        """Whether it has started and handles signals itself."""
        return self._line.is_here

    @property
    def is_done(self) -> bool:
        """Whether it is no longer needed: rank 0 when all is written, others when rank 0 has their results."""
        return self._line.is_done if self._first is None else self._first._line.is_alone

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Send SIGINT, which rank 0 handles for all ranks."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def let_go(self) -> None:
        """Request that it ends by itself, if it listens."""
        self._line.cut()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def end_at_once(self) -> None:
        """Kill and reap it, if it still runs."""
        if self.poll() is None:
            self.kill()
            self._process.wait()

    def last_lines(self) -> list[str]:
        """Return the last lines that it wrote to stderr; [] for rank 0, whose output the user has seen."""
        if self._voice is None:
            return []
        size = self._voice.seek(0, os.SEEK_END)
        self._voice.seek(max(0, size - TAIL_BYTES))
        return self._voice.read().decode(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
