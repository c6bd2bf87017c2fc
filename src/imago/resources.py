"""What this machine has: cores, memory, and what they are enough for."""

import os
from contextlib import suppress
from pathlib import Path

CORES = "IMAGO_CORES"
"""Environment variable with the number of cores of a process that shares the machine with others."""


def workers(num_workers: int | None, processes: int) -> int:
    """The number of loader workers for one of `processes`; None divides the cores among them, at most 8 for each."""
    return max(1, usable_cores(8 * processes) // processes) if num_workers is None else num_workers


def usable_cores(most: int = 8) -> int:
    """The number of cores that this process may use; at most `most`: with more than 8, disks do not keep up with one
    device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(CORES, "")
    return min(cores, most, max(1, int(share)) if share.isdecimal() else cores)


def free_memory() -> int:
    """Bytes that this process can take without swapping; containers have a limit of their own."""
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in (  # cgroup v2, v1
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            limits.append(int((group / limit).read_text()) - int((group / used).read_text()))
    if not limits:  # not Linux
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(limits))
