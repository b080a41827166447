"""Rank, number of ranks and addresses of this process, from the environment that its launcher set."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Mapping

from attrs import field, frozen

from vitrail.errors import CommError

FIRST_PORT, PORTS = 16384, 16384  # of SLURM steps without MASTER_PORT; below the ephemeral ports
MOST_RANKS = 256  # started by one command; a launcher may start more
HOSTED = "VITRAIL_STORE_IS_HOSTED"  # set to 1 by a launcher that hosts the store itself
SECRET = "VITRAIL_SECRET"  # noqa: S105 - the variable's name; set by vitrail's launcher or by the user
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS")


@frozen
class RankEnvironment:
    """One process among the ranks of a run.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: Number of ranks.
        local_rank: Index among the ranks of one host.
        master_addr: Host of the store through which the ranks find each other.
        master_port: Port of the store.
        store_is_hosted: Whether the launcher hosts the store; otherwise rank 0 does.
        attempt: Number of restarts of the run by the launcher.
        secret: Shared secret of the run's ranks; never sent. Under SLURM, and under torchrun with a known run id,
            other users can guess it unless VITRAIL_SECRET is set.
        name: Name of the run that other processes may see.
        is_local: Whether all ranks are on one host, so that no other host needs access.
        has_torch_store: Whether the launcher hosts a torch store, which any process can read: rank 0 then hosts the
            run's own store elsewhere and publishes its address there.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    store_is_hosted: bool = False
    attempt: int = 0
    secret: str = field(default="", repr=False)
    name: str = "a run"
    is_local: bool = field()
    has_torch_store: bool = False

    @is_local.default
    def _leads_here(self) -> bool:
        return is_loopback(self.master_addr)

    @property
    def hosts_store(self) -> bool:
        """Whether this process must host the run's store."""
        return self.rank == 0 and (self.has_torch_store or not self.store_is_hosted)


def from_environment(variables: Mapping[str, str] | None = None) -> RankEnvironment | None:
    """Read the variables of torchrun, ``vitrail sample --ranks`` or SLURM; None if launched by none of them.

    Raises:
        CommError: If variables are missing or are not valid numbers.
    """
    known = os.environ if variables is None else variables
    if "RANK" in known or "WORLD_SIZE" in known:
        return _from_torchrun(known)
    # SLURM sets its variables in every job, also in one with a single task
    if "SLURM_PROCID" in known and known.get("SLURM_NTASKS", "") not in ("", "1"):
        return _from_slurm(known)
    return None


def _from_torchrun(known: Mapping[str, str]) -> RankEnvironment:
    _require(known, TORCHRUN, "torchrun")
    hosted, agent = known.get(HOSTED) == "1", known.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = (known["MASTER_ADDR"], known["MASTER_PORT"])
    return _checked(
        RankEnvironment(
            rank=_number(known, "RANK"),
            world_size=_number(known, "WORLD_SIZE"),
            local_rank=_number(known, "LOCAL_RANK", _number(known, "RANK")),
            master_addr=known["MASTER_ADDR"],
            master_port=_number(known, "MASTER_PORT"),
            store_is_hosted=hosted or agent,
            attempt=_number(known, "TORCHELASTIC_RESTART_COUNT", 0),
            secret=known.get(SECRET) or _derived("torchrun", known.get("TORCHELASTIC_RUN_ID", ""), *place),
            name="ranks of vitrail --ranks" if hosted else "ranks of torchrun",
            is_local=is_loopback(place[0]) or known.get("LOCAL_WORLD_SIZE") == known["WORLD_SIZE"],
            has_torch_store=agent and not hosted,
        ),
        "RANK",
        "WORLD_SIZE",
    )


def _from_slurm(known: Mapping[str, str]) -> RankEnvironment:
    _require(known, SLURM, "SLURM")
    job, step = known.get("SLURM_JOB_ID", ""), known.get("SLURM_STEP_ID", "")
    address = known.get("MASTER_ADDR") or _first_host(known.get("SLURM_JOB_NODELIST", ""))
    own_port = FIRST_PORT + int(_derived("port", job, step), 16) % PORTS
    return _checked(
        RankEnvironment(
            rank=_number(known, "SLURM_PROCID"),
            world_size=_number(known, "SLURM_NTASKS"),
            local_rank=_number(known, "SLURM_LOCALID", 0),
            master_addr=address,
            master_port=_number(known, "MASTER_PORT", own_port),
            attempt=_number(known, "SLURM_RESTART_COUNT", 0),
            secret=known.get(SECRET) or _derived("slurm", job, step),
            name=f"SLURM job {job or 'of no number'}, step {step or 'of no number'}",
            is_local=is_loopback(address) or "1" in (known.get("SLURM_STEP_NUM_NODES"), known.get("SLURM_NNODES")),
        ),
        "SLURM_PROCID",
        "SLURM_NTASKS",
    )


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address, without resolving names other than "localhost"."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _derived(*parts: str) -> str:
    """Return hexadecimal digits derived from all parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _first_host(nodes: str) -> str:
    """Return the first host of a list such as ``a,b`` or ``node[07-09,12]``.

    Raises:
        CommError: If the list is missing or of another form.
    """
    first, bracket, numbers = nodes.partition(",")[0].partition("[")
    if bracket:
        first += numbers.partition("]")[0].partition("-")[0]
    if not first or any(sign in first for sign in "[]") or "[" in nodes.partition("]")[2]:
        raise CommError(
            f"no host can be read from SLURM_JOB_NODELIST={nodes!r}; set MASTER_ADDR to the host of rank 0 "
            "(scontrol show hostnames)"
        )
    return first


def _require(known: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if not known.get(name)]
    if missing:
        there = ", ".join(f"{name}={known[name]}" for name in names if known.get(name))
        raise CommError(
            f"the environment looks like {launcher}'s ({there}), but {' and '.join(missing)} is not set; "
            "set all of them, or none to run one rank"
        )


def _number(known: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = known.get(name, "")
    if not text and default is not None:
        return default
    if not text.strip().isdecimal():
        raise CommError(f"the environment variable {name} must be a whole number, got {text!r}")
    return int(text)


def _checked(environment: RankEnvironment, rank_name: str, size_name: str) -> RankEnvironment:
    if not environment.rank < environment.world_size:
        raise CommError(
            f"{rank_name}={environment.rank} does not fit {size_name}={environment.world_size}: ranks count from 0"
        )
    return environment


def namespace(environment: RankEnvironment, count: int) -> str:
    """Return the prefix of the store's keys for a process's count-th communicator."""
    return f"vitrail/{environment.attempt}/{count}"
