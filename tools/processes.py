"""Processes of a run, their listening sockets and left-over shared memory, from /proc on Linux."""

import contextlib
import os
import signal
from pathlib import Path

from attrs import frozen

MARK = "VITRAIL_DRILL"  # environment variable that identifies a run's processes, whatever their parents
LISTENING = "0A"  # state of a socket in /proc/net/tcp
SHARED = Path("/dev/shm")


@frozen
class Listener:
    """A listening socket: process id, address as the kernel writes it, port."""

    pid: int
    address: str
    port: int

    @property
    def is_loopback(self):
        """Whether the address is that of the loopback interface."""
        return self.address in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def processes(mark):
    """Map the process ids of a run's live processes to their environments."""
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
    """Map ranks to process ids; of a rank with child processes the lowest id is taken."""
    found = {}
    for pid, variables in sorted(processes(mark).items(), reverse=True):
        if variables.get("RANK", "").isdecimal():
            found[int(variables["RANK"])] = pid
    return found


def state(pid):
    """Return the state of a process: R, S, T (stopped), Z (zombie), ...; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def listeners(pids):
    """Return the listening sockets of some processes."""
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
    """Return those of the ports on which any process listens."""
    open_ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, status, *_ = line.split()
                if status == LISTENING:
                    open_ports.add(int(local.partition(":")[2], 16))
    return sorted(set(ports) & open_ports)


def shared_memory(pids):
    """Return the names in shared memory that contain the id of one of the processes."""
    names = {str(pid) for pid in pids}
    return sorted(path.name for path in SHARED.glob("*") if names & set(path.name.replace("-", "_").split("_")))


def kill_all(mark):
    """Kill all live processes of a run."""
    for pid in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
