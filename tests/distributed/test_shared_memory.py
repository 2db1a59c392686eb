"""Exchange through common memory: what every worker gets, when it is used, what is left behind."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import Case, in_processes, run_workers

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


def usable(mesh: Mesh) -> bool:
    return mesh.modality_memory is not None and mesh.modality_memory.usable


def sum_gradients(rank: int, folder: Path, share: bool) -> None:
    """Two replicas: dense gradients, and rows of two tables of which one replica has none."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(str(folder / "store"), rank, 2, 60)
    mesh = process_mesh(2, groups=1, timeout_seconds=60, share_memory=share)
    assert (mesh.replica_memory is not None and mesh.replica_memory.usable) == share
    for turn in range(3):
        dense = [torch.full((2, 3), rank + 1.0), torch.full((5000,), turn + rank * 10.0)]
        mesh.sum_replicas(dense)
        assert torch.equal(dense[0], torch.full((2, 3), 3.0))
        assert torch.equal(dense[1], torch.full((5000,), 2.0 * turn + 10))
        tables = [rows_of({0: [4, 7], 1: [1, 4]}[rank], 9), rows_of({0: [], 1: [2]}[rank], 3)]
        one, two = mesh.sum_rows(tables)
        assert one.to_dense()[:, 0].tolist() == [0, 1, 0, 0, 2, 0, 0, 1, 0]
        assert two.to_dense()[:, 0].tolist() == [0, 0, 1]
        nothing = mesh.sum_rows([rows_of([], 9), rows_of([], 3)])
        assert [g._nnz() for g in nothing] == [0, 0]
        losses = torch.tensor([turn, rank], dtype=torch.float64)
        assert mesh.sum_step(losses).tolist() == [2 * turn, 1]
    rows = 2 * 8 + (8 * 3 + 8 * 3)  # replica 1: three rows of two floats
    assert mesh.received["row gradients"] == 3 * (rows + 2 * 8)
    assert mesh.received["dense gradients"] == 3 * 4 * 5006
    dist.destroy_process_group()


def rows_of(rows: list[int], size: int) -> torch.Tensor:
    index = torch.tensor([rows], dtype=torch.int64)
    values = torch.ones(len(rows), 2)
    return torch.sparse_coo_tensor(index, values, (size, 2), is_coalesced=True, check_invariants=False)


@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_replicas_are_added_up(tmp_path: Path, share: bool) -> None:
    in_processes(partial(sum_gradients, share=share), tmp_path)


def gather_in_turns(rank: int, folder: Path, num_modalities: int) -> None:
    """Sizes that grow and shrink; a worker that is always later than its peer still finds what belongs to its turn."""
    mesh = meet(rank, folder, num_modalities)
    assert usable(mesh)
    sizes = (5, 7, 3000, 3001, 40, 100_000, 1)
    for turn, columns in enumerate(sizes):
        finish = mesh.start_gather(own_part(mesh, turn, columns).requires_grad_())
        found = finish()
        if rank == turn % 2:
            time.sleep(0.1)  # the peer is by then in its next turn
        assert not found.requires_grad
        assert torch.equal(found, whole(mesh, turn, columns))
        losses = torch.full((2,), float(rank + turn), dtype=torch.float64)
        assert mesh.sum_step(losses).tolist() == [2 * turn + 1] * 2
    half = own_part(mesh, 1, 9).bfloat16()
    gathered = mesh.start_gather(half.view(torch.uint8))()
    assert torch.equal(gathered.view(torch.bfloat16), whole(mesh, 1, 9).bfloat16())
    most = -(-num_modalities // 2)
    assert mesh.received["scores"] == most * (4 * sum(sizes) + 2 * 9)
    dist.destroy_process_group()


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_every_worker_gets_all_parts_in_order(tmp_path: Path, num_modalities: int) -> None:
    in_processes(partial(gather_in_turns, num_modalities=num_modalities), tmp_path)


def gather_apart(rank: int, folder: Path) -> None:
    """What worker 1 finds at the address is not worker 0's memory: it is on another machine."""
    if rank == 1:
        found = shared_memory._mapped
        shared_memory._mapped = lambda message, size: found(bytes(32) + message[32:], size)
    mesh = meet(rank, folder)
    assert not usable(mesh)
    assert torch.equal(mesh.start_gather(own_part(mesh, 2, 50))(), whole(mesh, 2, 50))
    assert mesh.received["scores"] == 200
    dist.destroy_process_group()


def test_workers_of_different_machines_use_sockets(tmp_path: Path) -> None:
    in_processes(gather_apart, tmp_path)


def step_on_two_machines(rank: int, folder: Path) -> None:
    """Two replicas of two groups, worker 3 on another machine: each axis decides for itself, alike on its workers."""
    if rank == 3:
        found = shared_memory._mapped
        shared_memory._mapped = lambda message, size: found(bytes(32) + message[32:], size)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(str(folder / "store"), rank, 4, 60)
    mesh = process_mesh(2, timeout_seconds=20)
    memories = (mesh.modality_memory, mesh.replica_memory, mesh.world_memory)
    used = [memory is not None and memory.usable for memory in memories]
    assert used == [rank in (0, 1), rank in (0, 2), False]
    for turn in range(2):
        assert torch.equal(mesh.start_gather(own_part(mesh, turn, 50))(), whole(mesh, turn, 50))
        dense = [torch.full((4,), float(rank))]
        mesh.sum_replicas(dense)
        assert dense[0].tolist() == [2.0 * mesh.group + 2] * 4
        (table,) = mesh.sum_rows([rows_of([mesh.replica], 3)])
        assert table.to_dense()[:, 0].tolist() == [1, 1, 0]
        assert mesh.sum_step(torch.tensor([1.0, rank], dtype=torch.float64)).tolist() == [4, 6]
    dist.destroy_process_group()


def test_some_workers_on_another_machine(tmp_path: Path) -> None:
    in_processes(step_on_two_machines, tmp_path, 4)


def gather_without_room(rank: int, folder: Path) -> None:
    """The first gathers fit; then the system has no more memory to give."""
    mesh = meet(rank, folder)
    assert torch.equal(mesh.start_gather(own_part(mesh, 1, 100))(), whole(mesh, 1, 100))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shared_memory.os.posix_fallocate = refuse  # type: ignore[assignment]
    for turn in (2, 3):
        assert torch.equal(mesh.start_gather(own_part(mesh, turn, 9000))(), whole(mesh, turn, 9000))
    assert not usable(mesh)
    dist.destroy_process_group()


def test_sockets_take_over_where_memory_runs_out(tmp_path: Path) -> None:
    in_processes(gather_without_room, tmp_path)


def look_at_maps(rank: int, folder: Path) -> None:
    mesh = meet(rank, folder)
    mesh.start_gather(torch.ones(1, 10_000))()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ours = [line for line in maps if "gnnmr-exchange" in line]
    assert len(ours) == 2  # for scores and for losses; the smaller one, before, is gone
    assert all(line.endswith("(deleted)") for line in ours)
    dist.destroy_process_group()


def test_the_memory_has_no_name_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    in_processes(look_at_maps, tmp_path)


def lose_the_peer(rank: int, folder: Path) -> None:
    """Worker 1 ends between two turns, worker 0 hears of it long before the timeout."""
    mesh = meet(rank, folder)
    mesh.start_gather(torch.ones(1, 10))()
    if rank == 1:
        os._exit(0)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the worker of modality group 1 is gone"):
        mesh.start_gather(torch.ones(1, 10))()
    assert time.monotonic() - began < 20
    os._exit(0)  # nobody is left to take leave of


def test_a_worker_that_is_gone_is_noticed(tmp_path: Path) -> None:
    in_processes(lose_the_peer, tmp_path)


def test_a_file_of_another_is_not_mapped(tmp_path: Path) -> None:
    victim = tmp_path / "log"
    victim.write_bytes(bytes(1 << 16))
    with open(victim, "r+b") as file:
        address = f"/proc/{os.getpid()}/fd/{file.fileno()}".encode()
        assert shared_memory._mapped(bytes(32) + address.ljust(96, b"\0"), 1 << 16) is None


def begin_twice(rank: int, folder: Path) -> None:
    mesh = meet(rank, folder)
    mesh.start_gather(torch.ones(1, 10))
    with pytest.raises(RuntimeError, match="expected turn 1 to be awaited"):
        mesh.start_gather(torch.ones(1, 10))
    dist.destroy_process_group()


def test_a_gather_must_be_awaited_before_the_next(tmp_path: Path) -> None:
    in_processes(begin_twice, tmp_path)


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_through_memory_or_sockets_the_same_bits(tmp_path: Path, num_modalities: int) -> None:
    path = str(tmp_path / "data")
    synthetic_dataset(
        path, num_users=60, num_items=80, num_modalities=num_modalities, interactions_per_user=12
    )
    changes: list[dict[str, dict[str, object]]] = [
        {},
        {"training": {"exchange": "bfloat16"}},
        {"loss": {"supervised": "bpr"}},
        {"cluster": {"modality_groups": 1}},  # two replicas: their gradients
    ]
    cases = [
        Case(path, change | {"cluster": {**change.get("cluster", {}), "share_memory": share}})
        for share in (True, False)
        for change in changes
    ]
    outcomes = run_workers(2, cases)
    for memory, sockets in zip(outcomes[: len(changes)], outcomes[len(changes) :], strict=True):
        for one, other in zip(memory, sockets, strict=True):
            assert np.array_equal(one.losses(), other.losses())
            assert one.weights == other.weights
            assert one.test == other.test
