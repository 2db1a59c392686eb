"""Every collective ends: with an agreement, or with an error once the timeout is over."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import in_processes

from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, process_mesh
from gnnmr_dist.notice import Notice, Wish

pytestmark = pytest.mark.multiprocess

TIMEOUT, SLACK = 3.0, 20.0


def rows() -> torch.Tensor:
    """A sparse gradient of one row."""
    one = torch.ones(1, 2)
    return torch.sparse_coo_tensor(
        torch.tensor([[0]]), one, (3, 2), is_coalesced=True, check_invariants=False
    )


COLLECTIVES: dict[str, Callable[[Mesh], object]] = {
    "gather_modalities": lambda mesh: mesh.gather_modalities(torch.ones(1, 3)),
    "scores through memory": lambda mesh: mesh.start_gather(torch.ones(1, 3))(),
    "scores, memory grows": lambda mesh: mesh.start_gather(torch.ones(1, 10_000))(),
    "replicas: sum_step": lambda mesh: mesh.sum_step(torch.ones(2, 2, dtype=torch.float64)),
    "sockets: scores": lambda mesh: mesh.start_gather(torch.ones(1, 3))(),
    "sockets, replicas: sum_replicas": lambda mesh: mesh.sum_replicas([torch.ones(2)]),
    "sockets, replicas: sum_rows": lambda mesh: mesh.sum_rows([rows()]),
    "sockets: sum_step": lambda mesh: mesh.sum_step(torch.ones(2, 2, dtype=torch.float64)),
    "sum_world": lambda mesh: mesh.sum_world(torch.ones(2)),
    "sum_step": lambda mesh: mesh.sum_step(torch.ones(2, 2, dtype=torch.float64)),
    "gather_world": lambda mesh: mesh.gather_world(torch.ones(2)),
    "replicas: sum_replicas": lambda mesh: mesh.sum_replicas([torch.ones(2)]),
    "replicas: sum_rows": lambda mesh: mesh.sum_rows([rows()]),
}


def agree(rank: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(str(folder / "store"), rank, 2, 60)
    notice = Notice()
    mesh = process_mesh(2, notice=notice, timeout_seconds=60)
    losses = torch.tensor([[1.0, 0.5], [rank, 2.0]], dtype=torch.float64)
    told = []
    for wish in (Wish.GO_ON, Wish.MOVE, Wish.END):
        if rank == 1:
            notice.tell(wish)
        elif wish is Wish.END:
            notice.tell(Wish.MOVE)
        assert mesh.sum_step(losses).tolist() == [[2.0, 1.0], [1.0, 4.0]]
        told.append(notice.agreed.name)
    (folder / f"agreed.{rank}").write_text(" ".join(told))
    dist.destroy_process_group()


def test_workers_agree_on_a_wish_after_the_same_step(tmp_path: Path) -> None:
    in_processes(agree, tmp_path)
    assert {(tmp_path / f"agreed.{rank}").read_text() for rank in range(2)} == {"GO_ON MOVE END"}


def miss(rank: int, folder: Path) -> None:
    """Rank 1 makes the groups and then takes part in nothing."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(str(folder / "store"), rank, 2, 60)  # a first time, until both have started
    dist.barrier()
    dist.destroy_process_group()
    for number, (name, collective) in enumerate(COLLECTIVES.items()):
        meet_by_file(str(folder / f"store.{number}"), rank, 2, TIMEOUT)
        groups = 1 if "replicas:" in name else 2
        share = not name.startswith("sockets")
        mesh = process_mesh(2, groups=groups, timeout_seconds=TIMEOUT, share_memory=share)
        done = folder / f"waited.{number}"
        if rank == 1:
            while not done.exists():
                time.sleep(0.02)
        else:
            began = time.monotonic()
            try:
                collective(mesh)
                waited = "it came to an end"
            except RuntimeError:
                waited = f"{time.monotonic() - began:.2f}"
            done.write_text(waited)
        dist.destroy_process_group()


@pytest.mark.slow
def test_no_collective_waits_longer_than_the_timeout(tmp_path: Path) -> None:
    in_processes(miss, tmp_path)
    waited = {name: (tmp_path / f"waited.{n}").read_text() for n, name in enumerate(COLLECTIVES)}
    assert all(TIMEOUT * 0.5 < float(seconds) < TIMEOUT + SLACK for seconds in waited.values()), waited
