"""Creation of a command's ranks: one alone, threads, processes that it starts, or a group of a launcher."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from attrs import frozen

from vitrail.comm.backends.process_group_store import LOST
from vitrail.comm.communicator import TIMEOUT_S
from vitrail.comm.environment import HOSTED, MOST_RANKS, RankEnvironment, from_environment
from vitrail.comm.lifeline import ALONE, DONE, tell
from vitrail.core.config import atomic
from vitrail.core.method.members import OptionalBackend, has_own
from vitrail.errors import CommAborted, CommError, ConfigError, shortened
from vitrail.sampling.discovery import registry

if TYPE_CHECKING:
    from vitrail.comm.communicator import RankCommunicator
    from vitrail.core.engine.exchange import ExchangeKind, Speeds

T = TypeVar("T")
Kind = Literal["alone", "here", "start", "join"]


@frozen(kw_only=True)
class RankOptions:
    """Options of ranks on the command line; none of them changes the picture.

    Attributes:
        ranks: Number of ranks; None is the number that the launcher started, or one.
        comm: Name of the backend; None is gloo, or nccl if the model runs on CUDA.
        timeout: Seconds that a rank waits for another.
        speeds: Relative speeds of the ranks; () for equal ones, "auto" to measure them.
        exchange: What ranks wait for at a step, see ``Spread``.
    """

    ranks: int | None = None
    comm: str | None = None
    timeout: float = TIMEOUT_S
    speeds: Speeds = ()
    exchange: ExchangeKind = "barrier"


@frozen
class RankPlacement:
    """How the ranks of a run are created.

    Attributes:
        kind: "alone" is one rank in this process, "here" threads of this process, "start" processes to be started,
            "join" one rank of a launcher's group.
        world_size: Number of ranks.
        options: The options on the command line.
        environment: Rank and addresses from the launcher's variables; None unless ``kind`` is "join".
    """

    kind: Kind
    world_size: int
    options: RankOptions
    environment: RankEnvironment | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process prints for the user, which rank 0 does."""
        return self.environment is None or self.environment.rank == 0


def place(options: RankOptions) -> RankPlacement:
    """Determine how the ranks are created, without starting any.

    Raises:
        ConfigError: If the options are invalid or contradict the launcher, or the launcher's variables are incomplete;
            there are never fewer ranks than requested.
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
    if options.speeds and not isinstance(options.speeds, str) and len(options.speeds) != ranks:
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
    """Run this command line once per rank in new processes, and wait for them.

    The current folder is not on the ranks' import path, unless Vitrail itself is imported from it.

    Args:
        placement: Placement of kind "start".
        folders: Folders that ranks write to; partial files of killed ranks are removed there.

    Returns:
        The exit code of the command.
    """
    from vitrail.comm.backends.launch import launch

    command = [sys.executable, "-P", "-m", "vitrail", *sys.argv[1:]]
    owner, home = secrets.token_hex(8), Path(__file__).resolve().parents[2]
    variables = {**os.environ, atomic.OWNER: owner}
    if home == Path.cwd():
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    try:
        return launch(command, placement.world_size, timeout=placement.options.timeout, variables=variables)
    finally:
        atomic.discard_of(owner, [*folders, Path(tempfile.gettempdir())])


def run_ranks(placement: RankPlacement, on_cuda: bool, program: Callable[[RankCommunicator], T], run_id: str) -> T:
    """Run a program on the ranks of this process.

    Args:
        placement: Placement of any kind but "start".
        on_cuda: Whether the model runs on CUDA, which selects the default backend.
        program: Called with the communicator of each rank.
        run_id: Identifier of the run, equal on all ranks.

    Returns:
        The result of this process's rank; of rank 0 if the ranks are threads.
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
    """Flush stdout and tell the launcher that this rank has finished."""
    sys.stdout.flush()
    tell(DONE)


def teller(error: Exception) -> Literal["me", "launcher", "rank"]:
    """Return who reports an error to the user, so that an error of all ranks is reported once.

    Returns:
        "me" if this process reports it, "launcher" if the process that started the ranks does, "rank" if another rank
        does.
    """
    if not (isinstance(error, CommError) and error.is_known):
        return "me"
    if HOSTED in os.environ:
        return "launcher"
    environment = from_environment()
    is_left_alone = isinstance(error, CommAborted) and error.reason == LOST
    speaker = 1 if is_left_alone else 0
    return "me" if environment is None or environment.rank == speaker else "rank"


def end_rank(code: int) -> None:
    """End the process of a failed rank with ``os._exit``, since pending transfers would block the interpreter's exit.

    Returns if the process is not a rank of a launcher.
    """
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
