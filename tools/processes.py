"""What the processes of a run are, where they listen, and what they leave behind; on Linux, from /proc."""

import contextlib
import os
import signal
from pathlib import Path

from attrs import frozen

MARK = "VITRAIL_DRILL"  # an environment variable that tells a run's processes, whoever their parents are
LISTENING = "0A"
SHARED = Path("/dev/shm")


@frozen
class Listener:
    """A socket that waits for connections: whose, its address as the kernel writes it, its port."""

    pid: int
    address: str
    port: int

    @property
    def is_loopback(self):
        return self.address in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def processes(mark):
    """Process id to environment of every process of a run that lives."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(
                each.split("=", 1)
                for each in (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                if "=" in each
            )
            if variables.get(MARK) == mark and state(int(folder.name)) not in ("Z", "X"):
                found[int(folder.name)] = variables
    return found


def ranks(mark):
    """Rank to process id. Where a rank has children of its own the eldest is taken."""
    found = {}
    for pid, variables in sorted(processes(mark).items(), reverse=True):
        if variables.get("RANK", "").isdecimal():
            found[int(variables["RANK"])] = pid
    return found


def state(pid):
    """The letter of a process: R, S, T (stopped), Z (dead, not yet reaped), ...; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def listeners(pids):
    """Sockets of these processes that wait for connections."""
    owners = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    owners[str(link.readlink())] = pid
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, status, *rest = line.split()
                owner = owners.get(f"socket:[{rest[5]}]")
                if status == LISTENING and owner is not None:
                    address, _, port = local.partition(":")
                    found.append(Listener(owner, address, int(port, 16)))
    return found


def still_listening(ports):
    """Those of the ports at which somebody waits."""
    open_ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, status, *_ = line.split()
                if status == LISTENING:
                    open_ports.add(int(local.partition(":")[2], 16))
    return sorted(set(ports) & open_ports)


def shared_memory(pids):
    """Names in shared memory that carry the number of one of the processes."""
    names = {str(pid) for pid in pids}
    return sorted(path.name for path in SHARED.glob("*") if names & set(path.name.replace("-", "_").split("_")))


def kill_all(mark):
    """Whatever of a run still lives."""
    for pid in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
