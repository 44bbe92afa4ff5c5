"""The memory that may be allocated now, by machine, control groups and process limits."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

SYSTEM = Path("/")
"""Where the system's own files begin."""
GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and what of it can be given back, of control groups of version 2 and 1."""


def memory_left() -> int:
    """Bytes that this process may still take on the CPU under every limit, ≥ 0."""
    device = torch.device("cpu")
    return min(free_memory(device), address_space_left(device))


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take without being killed, ≥ 0.

    On a CPU that is the least of what the machine has free and what the control groups (containers,
    batch jobs) leave; for `ulimit -v` see `address_space_left`.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = [least for folder in _groups() for least in _left_of_group(folder)]
    return max(0, min(psutil.virtual_memory().available, *left, sys.maxsize))


def address_space_left(device: torch.device) -> int:
    """Bytes that the limit of the address space (`ulimit -v`) leaves, ≥ 0; more are refused."""
    try:
        import resource  # absent on Windows
    except ImportError:
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or device.type == "cuda":
        return sys.maxsize
    return max(0, limit - psutil.Process().memory_info().vms)


def _groups() -> Iterator[Path]:
    """The folders of this process's control groups, those around them included."""
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = SYSTEM / "sys/fs/cgroup" / controllers
            own = top / path.strip("/")
            yield from (f for f in (own, *own.parents) if f.is_relative_to(top))


def _left_of_group(folder: Path) -> Iterator[int]:
    for limit, usage, cache in GROUPS:
        try:
            most = (folder / limit).read_text().strip()
            if most == "max":
                continue
            used = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            given_back = dict(line.split(maxsplit=1) for line in lines).get(cache, "0")
            yield int(most) - used + int(given_back)
        except (OSError, ValueError):
            continue
