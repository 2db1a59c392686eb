"""How much memory this process uses, and how much of it is shared."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_KEYS = {
    "rss_mib": "Rss",
    "proportional_mib": "Pss",
    "shared_clean_mib": "Shared_Clean",
    "private_mib": "Private_Dirty",
}


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
