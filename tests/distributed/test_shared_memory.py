"""Scores through common memory: what every worker gets, when it is used, what is left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import Case, in_two_processes, run_workers

from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.distributed import shared_memory
from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, process_mesh

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="nameless files in memory are Linux's"),
]


def meet(rank: int, folder: Path, num_modalities: int = 2) -> Mesh:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(str(folder / "store"), rank, 2, 60)
    return process_mesh(num_modalities, timeout_seconds=60)


def own_part(mesh: Mesh, turn: int, columns: int) -> torch.Tensor:
    """Different in every modality, turn and column."""
    return torch.stack([turn * 100 + m + torch.arange(columns) / columns for m in mesh.hosted])


def whole(mesh: Mesh, turn: int, columns: int) -> torch.Tensor:
    return torch.stack([turn * 100 + m + torch.arange(columns) / columns for m in range(mesh.num_modalities)])


def gather_in_turns(rank: int, folder: Path) -> None:
    """Sizes that grow, shrink and do not divide by the workers; what the turn before gave is still whole."""
    mesh = meet(rank, folder, num_modalities=3)
    assert mesh.memory is not None
    assert mesh.memory.usable
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for turn, columns in enumerate((5, 7, 3000, 3001, 40, 100_000, 1)):
        finish = mesh.start_gather(own_part(mesh, turn, columns).requires_grad_())
        found, expected = finish(), whole(mesh, turn, columns)
        assert not found.requires_grad
        for got, wanted in [*before[-1:], (found, expected)]:
            assert torch.equal(got, wanted)
        before.append((found, expected))
    half = own_part(mesh, 1, 9).bfloat16()
    gathered = mesh.start_gather(half.view(torch.uint8))()
    assert torch.equal(gathered.view(torch.bfloat16), whole(mesh, 1, 9).bfloat16())
    assert mesh.received["scores"] == 2 * (4 * (5 + 7 + 3000 + 3001 + 40 + 100_000 + 1) + 2 * 9)
    dist.destroy_process_group()


def test_every_worker_gets_all_parts_in_order(tmp_path: Path) -> None:
    in_two_processes(gather_in_turns, tmp_path)


def gather_apart(rank: int, folder: Path) -> None:
    """Worker 1 is, as far as both can tell, on another machine."""
    if rank == 1:
        shared_memory._identity = lambda: b"another machine".ljust(32)
    mesh = meet(rank, folder)
    assert mesh.memory is not None
    assert not mesh.memory.usable
    assert torch.equal(mesh.start_gather(own_part(mesh, 2, 50))(), whole(mesh, 2, 50))
    assert mesh.received["scores"] == 200
    dist.destroy_process_group()


def test_workers_of_different_machines_use_sockets(tmp_path: Path) -> None:
    in_two_processes(gather_apart, tmp_path)


def gather_without_room(rank: int, folder: Path) -> None:
    """The first gathers fit; then the system has no more memory to give."""
    mesh = meet(rank, folder)
    assert torch.equal(mesh.start_gather(own_part(mesh, 1, 100))(), whole(mesh, 1, 100))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shared_memory.os.posix_fallocate = refuse  # type: ignore[assignment]
    for turn in (2, 3):
        assert torch.equal(mesh.start_gather(own_part(mesh, turn, 9000))(), whole(mesh, turn, 9000))
    assert mesh.memory is not None
    assert not mesh.memory.usable
    dist.destroy_process_group()


def test_sockets_take_over_where_memory_runs_out(tmp_path: Path) -> None:
    in_two_processes(gather_without_room, tmp_path)


def look_at_maps(rank: int, folder: Path) -> None:
    mesh = meet(rank, folder)
    mesh.start_gather(torch.ones(1, 10_000))()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ours = [line for line in maps if "gnnmr-scores" in line]
    assert len(ours) == 1  # the smaller one, before, is gone
    assert ours[0].endswith("(deleted)")
    assert not any("gnnmr-scores" in name for name in os.listdir("/dev/shm"))
    dist.destroy_process_group()


def test_the_memory_has_no_name_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    in_two_processes(look_at_maps, tmp_path)


def test_through_memory_or_sockets_the_same_bits(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    synthetic_dataset(path, num_users=60, num_items=80, num_modalities=3, interactions_per_user=12)
    cases = [Case(path, {"cluster": {"share_memory": share}}) for share in (True, False)]
    memory, sockets = run_workers(2, cases)
    for one, other in zip(memory, sockets, strict=True):
        assert np.array_equal(one.losses(), other.losses())
        assert one.weights == other.weights
        assert one.test == other.test
