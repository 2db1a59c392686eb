"""Memory figures against an allocation of known size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from gnnmr_dist import memory
from gnnmr_dist.memory import memory_now


def test_an_allocation_shows() -> None:
    before = memory_now()
    block = np.ones(64 << 20, np.uint8)
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
