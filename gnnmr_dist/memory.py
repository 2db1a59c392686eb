"""How much memory this process uses, how much of it is shared, and that freed memory stays at hand."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_KEYS = {
    "rss_mib": "Rss",
    "proportional_mib": "Pss",
    "shared_clean_mib": "Shared_Clean",
    "private_mib": "Private_Dirty",
}


_ALLOCATOR = {"MALLOC_ARENA_MAX": (-8, 1), "MALLOC_MMAP_MAX_": (-4, 0), "MALLOC_TRIM_THRESHOLD_": (-1, -1)}
# names in the environment; numbers of mallopt (malloc.h): one arena, in which also large blocks lie, never trimmed


def keep_freed_memory() -> None:
    """Have this process reuse freed memory instead of giving it back to the system; nothing happens but on glibc.

    A step makes and frees the same large tensors again and again, and fresh pages, each zeroed by the system, were a
    third of the time of large steps (docs/performance.md). Threads that have an arena of their own already keep it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in _ALLOCATOR.values():
        mallopt(option, value)


def allocator_environment() -> dict[str, str]:
    """The same as environment variables of a process that is yet to start."""
    return {name: str(value) for name, (_, value) in _ALLOCATOR.items()}


def memory_now() -> dict[str, float]:
    """Memory of this process in MiB.

    ``peak_rss_mib`` is the largest resident size so far; where Linux tells (/proc/self/smaps_rollup), also the resident
    size now, its proportional part (shared pages divided by their sharers), clean pages shared with others (mapped
    files), and pages of its own.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak_rss_mib": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return found
    sizes = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:] if line.endswith("kB")}
    return found | {name: int(sizes[key]) / 1024 for name, key in _KEYS.items() if key in sizes}
