"""Memory figures against an allocation of known size."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gnnmr_dist import memory
from gnnmr_dist.memory import allocator_environment, keep_freed_memory, memory_now


def test_an_allocation_shows() -> None:
    before = memory_now()
    block = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)  # fresh, not what was freed and is kept
    block[:] = 1
    after = memory_now()
    assert block[-1] == 1
    assert after["peak_rss_mib"] >= before["peak_rss_mib"] > 1
    if "rss_mib" in after:
        assert 60 < after["rss_mib"] - before["rss_mib"] < 100
        assert after["peak_rss_mib"] >= after["rss_mib"] - 1
        assert after["proportional_mib"] <= after["rss_mib"]


@pytest.mark.skipif(sys.platform != "linux", reason="smaps_rollup is Linux's")
def test_the_kernels_table_is_read_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "smaps_rollup"
    file.write_text(
        "55d0-7ffd ---p 00000000 00:00 0 [rollup]\n"
        "Rss: 2048 kB\nPss: 1024 kB\nShared_Clean: 512 kB\nPrivate_Dirty: 256 kB\n"
    )
    monkeypatch.setattr(memory, "Path", lambda _: file)
    found = memory_now()
    assert {k: v for k, v in found.items() if k != "peak_rss_mib"} == {
        "rss_mib": 2,
        "proportional_mib": 1,
        "shared_clean_mib": 0.5,
        "private_mib": 0.25,
    }
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "absent")
    assert list(memory_now()) == ["peak_rss_mib"]


FRESH = """
import resource
import numpy as np
{call}
faults = []
for _ in range(4):
    block = np.ones(100 << 20, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    del block
print(faults[3] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("how", ["not at all", "by a call", "by the environment"])
def test_freed_memory_is_kept(how: str) -> None:
    call = (
        "from gnnmr_dist.memory import keep_freed_memory; keep_freed_memory()" if how == "by a call" else ""
    )
    extra = allocator_environment() if how == "by the environment" else {}
    run = subprocess.run(
        [sys.executable, "-c", FRESH.format(call=call)],
        env=os.environ | extra,
        capture_output=True,
        text=True,
        check=True,
    )
    fresh = int(run.stdout) > 20  # pages, of 2 MB at most
    assert fresh == (how == "not at all")


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: None) -> None:
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", none)
    keep_freed_memory()
