"""How a command's ranks come about: alone, as threads, as processes it starts itself, or in a group that exists."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from attrs import field, frozen

from vitrail.comm.backends.process_group_store import LOST
from vitrail.comm.communicator import TIMEOUT_S
from vitrail.comm.environment import HOSTED, MOST_RANKS, RankEnvironment, from_environment
from vitrail.comm.lifeline import ALONE, DONE, tell
from vitrail.core.config import atomic
from vitrail.core.config.fields import as_tuple
from vitrail.core.method.members import OptionalBackend, has_own
from vitrail.errors import CommAborted, CommError, ConfigError, shortened
from vitrail.sampling.discovery import registry

if TYPE_CHECKING:
    from vitrail.comm.communicator import RankCommunicator

T = TypeVar("T")
Kind = Literal["alone", "here", "start", "join"]


@frozen(kw_only=True)
class RankOptions:
    """What the command line says about ranks; none of it reaches the picture.

    Attributes:
        ranks: How many; None is as many as the launcher started, or one.
        comm: Backend; None is gloo, or nccl where the model runs on CUDA.
        timeout: Seconds that a rank waits for another.
        speeds: Relative speeds of the ranks; () for equal ones.
    """

    ranks: int | None = None
    comm: str | None = None
    timeout: float = TIMEOUT_S
    speeds: tuple[float, ...] = field(default=(), converter=as_tuple)


@frozen
class RankPlacement:
    """Where this process's rank or ranks are.

    Attributes:
        kind: One rank alone; threads of this process; processes to be started; or one of a group.
        world_size: Number of ranks.
        options: As given.
        environment: Of a group that exists.
    """

    kind: Kind
    world_size: int
    options: RankOptions
    environment: RankEnvironment | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user what happens: rank 0 does."""
        return self.environment is None or self.environment.rank == 0


def place(options: RankOptions) -> RankPlacement:
    """Decide how the ranks come about.

    Raises:
        ConfigError: If what was asked for cannot be had, or a launcher's variables are half set; never fewer
            ranks than asked for.
    """
    backend = None if options.comm is None else registry().get("comm", options.comm)
    if options.ranks is not None and options.ranks < 1:
        raise ConfigError(f"--ranks must be 1 or more, got {shortened(str(options.ranks), 20)}")
    try:
        environment = from_environment()
    except CommError as error:
        raise ConfigError(str(error)) from error
    if environment is None and (options.ranks or 1) > MOST_RANKS:
        raise ConfigError(
            f"--ranks must be at most {MOST_RANKS}, got {shortened(str(options.ranks), 20)}; more are for a launcher "
            "such as torchrun, on several machines"
        )
    ranks = options.ranks or (environment.world_size if environment else 1)
    if options.speeds and len(options.speeds) != ranks:
        raise ConfigError(f"--speeds gives {len(options.speeds)} numbers for {ranks} rank{'s' * (ranks > 1)}")
    local = backend is not None and not has_own(backend, OptionalBackend.join)  # its ranks are not processes
    if environment is not None:
        if ranks != environment.world_size:
            raise ConfigError(f"--ranks {ranks}, but the launcher started {environment.world_size}; leave --ranks out")
        if local:
            raise ConfigError(
                f"--comm {options.comm} cannot join the processes that a launcher started; use gloo or nccl"
            )
        return RankPlacement("join", ranks, options, environment)
    if local:
        return RankPlacement("here", ranks, options)
    if ranks == 1:
        return RankPlacement("alone", 1, options)
    return RankPlacement("start", ranks, options)


def start_ranks(placement: RankPlacement, folders: Iterable[Path]) -> int:
    """Run this very command once for each rank; the exit code to end with.

    The current folder is not where the ranks look for libraries, unless Vitrail itself lies in it.

    Args:
        placement: Of kind "start".
        folders: Where ranks write; what one that was killed had begun there is removed.
    """
    from vitrail.comm.backends.launch import launch

    command = [sys.executable, "-P", "-m", "vitrail", *sys.argv[1:]]
    owner, home = secrets.token_hex(8), Path(__file__).resolve().parents[1]
    variables = {**os.environ, atomic.OWNER: owner}
    if home == Path.cwd():
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    try:
        return launch(command, placement.world_size, timeout=placement.options.timeout, variables=variables)
    finally:
        atomic.discard_of(owner, [*folders, Path(tempfile.gettempdir())])


def run_ranks(placement: RankPlacement, on_cuda: bool, program: Callable[[RankCommunicator], T], run_id: str) -> T:
    """Run a program on this process's ranks, which may be one; gives rank 0's result, or that of the own rank.

    Args:
        placement: Not of kind "start".
        on_cuda: Whether the model runs on CUDA, which decides the backend if none was chosen.
        program: Called with each rank's communicator.
        run_id: Alike on all ranks.
    """
    from vitrail.comm.backends.in_process import solo
    from vitrail.comm.outcome import guarded

    options = placement.options
    if placement.kind == "alone":
        return guarded(solo(run_id), program)
    backend = registry().get("comm", options.comm or ("nccl" if on_cuda else "gloo"))(timeout=options.timeout)
    if placement.environment is None:
        results: Sequence[T] = backend.run(placement.world_size, program, run_id)
        return results[0]
    result = guarded(backend.join(placement.environment, run_id), program)
    tell(ALONE)
    return result


def report_done() -> None:
    """Tell whoever started this rank that its work is done."""
    if sys.stdout is not None:
        sys.stdout.flush()
    tell(DONE)


def teller(error: Exception) -> Literal["me", "launcher", "rank"]:
    """Who tells the user of an error: this process, unless all ranks know of it; then one of them or their launcher."""
    if not (isinstance(error, CommError) and error.is_known):
        return "me"
    if HOSTED in os.environ:
        return "launcher"
    environment = from_environment()
    is_left_alone = isinstance(error, CommAborted) and error.reason == LOST
    speaker = 1 if is_left_alone else 0
    return "me" if environment is None or environment.rank == speaker else "rank"


def end_rank(code: int) -> None:
    """End a rank that failed at once: its open transfers would keep the interpreter from ending."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
