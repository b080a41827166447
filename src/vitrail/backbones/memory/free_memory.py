"""Free memory, of an accelerator or for this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, version 1


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that a run may still allocate on a device; None if unknown.

    On an accelerator what the driver reports as free plus what torch's allocator reserves without using it; on the CPU
    what the system could give, or the process's control group if that is less.
    """
    import torch

    if device.type == "cpu":
        return min((*_system(), *_control_groups()), default=None)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    kept = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + kept)


def _system() -> Iterator[int]:
    """Yield what Linux could give without swapping; nothing on other systems."""
    if MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        if "MemAvailable" in fields:
            yield int(fields["MemAvailable"].split()[0]) * 1024


def _control_groups() -> Iterator[int]:
    """Yield what is left of the limit of each control group of this process, as in a container or a batch job."""
    for folder in _folders():
        for limit, used in FILES:
            try:
                most, now = (int((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):  # there is no limit, or it is "max"
                continue
            yield max(0, most - now + _reclaimable(folder))


def _folders() -> set[Path]:
    """Return the process's control groups and their parents, of cgroup versions 1 and 2."""
    found = {GROUPS, GROUPS / "memory"}
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            folder = GROUPS / controllers / path.lstrip("/")
            found |= {each for each in (folder, *folder.parents) if each.is_relative_to(GROUPS)}
    return found


def _reclaimable(folder: Path) -> int:
    """Return the bytes of cached files, which count as used but can be reclaimed."""
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
