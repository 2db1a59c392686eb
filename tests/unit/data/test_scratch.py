from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gnnmr_dist.data import scratch as module
from gnnmr_dist.data.scratch import Growing, blocks, scratch


@pytest.mark.parametrize("shape", [0, 7, (3, 5), (0, 4)])
def test_a_scratch_array_is_zeros_to_write_to(shape: int | tuple[int, ...]) -> None:
    array = scratch(shape, np.float16)
    np.testing.assert_array_equal(array, np.zeros(shape, np.float16))
    array += 1
    assert (array == 1).all()
    assert type(array) is np.ndarray


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array, growing = scratch(10, np.int64), Growing(np.int32)
    growing.append(np.arange(3))
    array[:] = 5
    assert growing.array().sum() + array.sum() == 53
    assert os.listdir(tmp_path) == []


def test_a_growing_array_holds_all_rows_in_order() -> None:
    growing = Growing(np.int32, (2,))
    growing.append(np.array([[1, 2], [3, 4]]))
    growing.append(np.empty((0, 2), np.int32))
    growing.append(np.array([[5, 6], [7, 8]]).T.copy().T)
    assert growing.size == 4
    assert growing.array().tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert Growing(np.int8).array().tolist() == []


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot take a file's room beforehand")

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        scratch(10, np.int8)


def test_blocks_cover_every_row_once() -> None:
    assert [(b.start, b.stop) for b in blocks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert list(blocks(0, 3)) == []


def test_without_a_place_for_temporary_files_there_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(module, "TemporaryFile", nowhere)
    with pytest.raises(OSError, match="No usable temporary directory"):
        Growing(np.int8)
