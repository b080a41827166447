"""Who this process is among the ranks, as whatever launched it says."""

from __future__ import annotations

import os
from collections.abc import Mapping

from attrs import frozen

from vitrail.errors import CommError

MOST_RANKS = 256  # that one command starts; a launcher may start more
PORT = 29500  # under SLURM, if MASTER_PORT is not set; torchrun's default
HOSTED = "VITRAIL_STORE_IS_HOSTED"  # set to 1 by a launcher that keeps the store itself
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS")


@frozen
class RankEnvironment:
    """One process among those of a run.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: Number of ranks.
        local_rank: Counts the ranks of one host.
        master_addr: Host of the store through which the ranks find each other.
        master_port: Its port.
        store_is_hosted: Whether the launcher keeps the store; otherwise rank 0 does.
        attempt: How often the launcher has restarted the run.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    store_is_hosted: bool = False
    attempt: int = 0

    @property
    def hosts_store(self) -> bool:
        """Whether this process has to keep the store."""
        return self.rank == 0 and not self.store_is_hosted


def from_environment(variables: Mapping[str, str] | None = None) -> RankEnvironment | None:
    """What torchrun, ``vitrail sample --ranks`` or SLURM says; None if this process was launched by none of them.

    Raises:
        CommError: If variables are missing, or are no fitting numbers.
    """
    known = os.environ if variables is None else variables
    if "RANK" in known or "WORLD_SIZE" in known:
        return _from_torchrun(known)
    # SLURM sets its variables in every job, also where no several tasks were asked for
    if "SLURM_PROCID" in known and known.get("SLURM_NTASKS", "") not in ("", "1"):
        return _from_slurm(known)
    return None


def _from_torchrun(known: Mapping[str, str]) -> RankEnvironment:
    _require(known, TORCHRUN, "torchrun")
    hosted = known.get(HOSTED) == "1" or known.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return _checked(
        RankEnvironment(
            rank=_number(known, "RANK"),
            world_size=_number(known, "WORLD_SIZE"),
            local_rank=_number(known, "LOCAL_RANK", _number(known, "RANK")),
            master_addr=known["MASTER_ADDR"],
            master_port=_number(known, "MASTER_PORT"),
            store_is_hosted=hosted,
            attempt=_number(known, "TORCHELASTIC_RESTART_COUNT", 0),
        ),
        "RANK",
        "WORLD_SIZE",
    )


def _from_slurm(known: Mapping[str, str]) -> RankEnvironment:
    _require(known, SLURM, "SLURM")
    return _checked(
        RankEnvironment(
            rank=_number(known, "SLURM_PROCID"),
            world_size=_number(known, "SLURM_NTASKS"),
            local_rank=_number(known, "SLURM_LOCALID", 0),
            master_addr=known.get("MASTER_ADDR") or _first_host(known.get("SLURM_JOB_NODELIST", "")),
            master_port=_number(known, "MASTER_PORT", PORT),
            attempt=_number(known, "SLURM_RESTART_COUNT", 0),
        ),
        "SLURM_PROCID",
        "SLURM_NTASKS",
    )


def _first_host(nodes: str) -> str:
    """The first of ``a,b`` or of ``node[07-09,12]``.

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
