"""The replica x modality mesh: the one object that knows ranks, with a one-process twin.

W workers = R replicas x G modality groups; rank = replica * G + group. Scores are gathered over the modality axis
(workers of one replica), gradients are summed over the replica axis (workers of one group).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from gnnmr_dist.distributed.shared_memory import SharedMemory
from gnnmr_dist.distributed.sparse_rows import as_bytes, bytes_of, from_bytes, sum_of_rows
from gnnmr_dist.errors import InputError
from gnnmr_dist.notice import Notice, Wish

EXCHANGED = ("scores", "dense gradients", "row gradients")
"""What the steps of training exchange."""


def shares(total: int, parts: int) -> list[range]:
    """0..total-1 cut into contiguous near-equal ranges, the longer ones first; some are empty when parts > total."""
    base, extra = divmod(total, parts)
    starts = [p * base + min(p, extra) for p in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def modality_groups(num_workers: int, num_modalities: int) -> int:
    """G: the largest divisor of the number of workers that is not above the number of modalities."""
    return max(g for g in range(1, num_workers + 1) if num_workers % g == 0 and g <= num_modalities)


@dataclass(frozen=True)
class Mesh:
    """A worker's place among all, and the collectives of training.

    ``num_modalities`` is M, the number of networks (members): GNNMR has one for each modality.

    With one worker every collective is the identity and no process group exists. ``received`` counts the bytes that
    collectives over the two axes brought to this worker, by what they carry (of sums, a ring's share); ``waited`` the
    seconds that they held this worker up (on a GPU those to start them: nothing waits there). ``modality_memory``,
    ``replica_memory`` and ``world_memory``: what the workers of an axis, or all, exchange through on one machine.
    """

    rank: int
    world_size: int
    num_modalities: int
    groups: int
    device: torch.device
    modality_axis: dist.ProcessGroup | None = None
    replica_axis: dist.ProcessGroup | None = None
    modality_memory: SharedMemory | None = field(default=None, compare=False)
    replica_memory: SharedMemory | None = field(default=None, compare=False)
    world_memory: SharedMemory | None = field(default=None, compare=False)
    received: Counter[str] = field(default_factory=Counter, compare=False)
    waited: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float), compare=False)
    notice: Notice = field(default_factory=Notice, compare=False)

    @property
    def replicas(self) -> int:
        """R."""
        return self.world_size // self.groups

    @property
    def replica(self) -> int:
        """This worker's place on the replica axis."""
        return self.rank // self.groups

    @property
    def group(self) -> int:
        """This worker's place on the modality axis."""
        return self.rank % self.groups

    @property
    def hosted(self) -> range:
        """The modalities this worker trains."""
        return shares(self.num_modalities, self.groups)[self.group]

    def exchange_seconds(self) -> float:
        """Seconds that the exchange of training has held this worker up so far: of scores, and of gradients."""
        return sum(self.waited[carried] for carried in EXCHANGED)

    @contextmanager
    def _held_up(self, carried: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited[carried] += time.perf_counter() - started

    def gather_modalities(self, own: Tensor) -> Tensor:
        """All modalities' tensors [M, ...] in the order of modalities, from this worker's own [hosted, ...].

        Bytes each worker receives: (G - 1) * ceil(M / G) * own[0].nbytes; groups that host fewer send padding.
        """
        return self.start_gather(own, "other")()

    def start_gather(self, own: Tensor, carried: str = "scores") -> Callable[[], Tensor]:
        """Begin :meth:`gather_modalities`; the returned function waits for its result.

        ``carried``: what its bytes are counted as in ``received``. Scores go through memory where there is one: what
        was gathered is valid until the next scores or losses are exchanged.
        """
        if self.groups == 1:
            return lambda: own
        sizes = [len(part) for part in shares(self.num_modalities, self.groups)]
        most = max(sizes)
        memory = self.modality_memory if carried == "scores" else None
        shared = None if memory is None else memory.room(own, most)
        everyone = own.new_empty((len(sizes) * most, *own.shape[1:])) if shared is None else shared
        slots = list(everyone.split(most))
        if memory is not None and shared is not None:
            slots[self.group][: own.shape[0]] = own.detach()
            memory.tell()
            wait: Callable[[], object] = memory.wait
        else:
            wait = self._start_all_gather(slots, own)
        self.received[carried] += (self.groups - 1) * slots[0].nbytes

        def finish() -> Tensor:
            with self._held_up(carried):
                wait()
            if min(sizes) == most:
                return everyone
            return torch.cat([slot[:size] for slot, size in zip(slots, sizes, strict=True)])

        return finish

    def _start_all_gather(self, slots: list[Tensor], own: Tensor) -> Callable[[], object]:
        """Begin to fill ``slots``, all of one shape, from every worker's ``own``, which may be shorter."""
        padded = own.contiguous()
        if own.shape[0] < slots[0].shape[0]:
            padded = torch.zeros_like(slots[0])
            padded[: own.shape[0]] = own
        work = dist.all_gather(slots, padded, group=self.modality_axis, async_op=True)
        return lambda: work.wait()  # which holds ``padded`` until then

    def _gather_replicas(self, own: Tensor) -> Tensor:
        """Every replica's tensor, all of one shape, [R, ...]; valid until the next call."""
        shared = None if self.replica_memory is None else self.replica_memory.gather(own)
        if shared is not None:
            return shared
        everyone = own.new_empty((self.replicas, *own.shape))
        dist.all_gather(list(everyone.unbind()), own, group=self.replica_axis)
        return everyone

    def sum_replicas(self, tensors: list[Tensor]) -> None:
        """Add ``tensors`` up over the replica axis, in place, as one message per dtype."""
        if self.replicas == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        received = (self.replicas - 1) * flat.nbytes
        with self._held_up("dense gradients"):
            shared = None if self.replica_memory is None else self.replica_memory.gather(flat)
            if shared is None:
                dist.all_reduce(flat, group=self.replica_axis)
                received = 2 * received // self.replicas
            else:
                flat = shared.sum(dim=0)
        self.received["dense gradients"] += received
        position = 0
        for t in tensors:
            t.copy_(flat[position : position + t.numel()].view_as(t))
            position += t.numel()

    def sum_rows(self, gradients: list[Tensor]) -> list[Tensor]:
        """Sparse gradients added up over the replica axis: of each, rows that any replica has, ascending, each once.

        Replicas add in their order, so all get the same bits. Bytes each receives: (R - 1) * (8 for every gradient's
        count + the most that any replica's rows and values take): they follow the batch, not the tables.
        """
        if self.replicas == 1 or not gradients:
            return gradients
        counts = torch.tensor([g._nnz() for g in gradients], device=self.device)
        own = as_bytes(gradients)
        with self._held_up("row gradients"):
            all_counts = self._gather_replicas(counts).tolist()
            most = max(bytes_of(some, gradients) for some in all_counts)
            self.received["row gradients"] += (self.replicas - 1) * (counts.nbytes + most)
            if most == 0:
                return gradients
            padded = torch.cat([own, own.new_zeros(most - own.numel())])
            everyone = self._gather_replicas(padded)
        parts = [from_bytes(one, some, gradients) for one, some in zip(everyone, all_counts, strict=True)]
        return [
            sum_of_rows(list(some), g.shape)
            for some, g in zip(zip(*parts, strict=True), gradients, strict=True)
        ]

    def sum_world(self, t: Tensor) -> None:
        """Add ``t`` up over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(t)

    def sum_step(self, losses: Tensor) -> Tensor:
        """``losses`` (float64) added up over all workers, on the CPU, as all of them do at the end of a step.

        What any worker wishes (``notice``) rides along in 16 bytes, so all agree on it after the same step.
        """
        heard = self.notice.heard()
        if self.world_size == 1:
            self.notice.agreed = heard
            return losses.cpu()
        wishes = losses.new_tensor([heard == Wish.MOVE, heard == Wish.END])
        together = torch.cat([losses.reshape(-1), wishes])
        shared = None if self.world_memory is None else self.world_memory.gather(together)
        if shared is None:
            dist.all_reduce(together)
        together = (together if shared is None else shared.sum(dim=0)).cpu()
        move, end = together[-2:].tolist()
        self.notice.agreed = Wish.END if end > 0 else Wish.MOVE if move > 0 else Wish.GO_ON
        return together[:-2].view_as(losses)

    def gather_world(self, own: Tensor) -> list[Tensor]:
        """Every worker's tensor, in order of rank; first axes may differ in length, the others may not."""
        if self.world_size == 1:
            return [own]
        return self._gather_ragged(own, None, self.world_size)

    def gather_numbers(self, own: Mapping[str, float]) -> list[dict[str, float]]:
        """Every worker's numbers by name, to a tenth, in order of rank; all workers have the same names."""
        row = torch.tensor([list(own.values())], dtype=torch.float64, device=self.device)
        every = [some[0].tolist() for some in self.gather_world(row)]
        return [dict(zip(own, (round(value, 1) for value in some), strict=True)) for some in every]

    @staticmethod
    def _gather_ragged(own: Tensor, axis: dist.ProcessGroup | None, size: int) -> list[Tensor]:
        length = torch.tensor([own.shape[0]], device=own.device)
        lengths = [torch.empty_like(length) for _ in range(size)]
        dist.all_gather(lengths, length, group=axis)
        longest = max(int(n) for n in lengths)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: own.shape[0]] = own
        slots = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(slots, padded, group=axis)
        return [slot[: int(n)] for slot, n in zip(slots, lengths, strict=True)]


def local_device(use_gpu: str = "auto") -> torch.device:
    """The device of a process without Ray: the GPU if there is one and ``use_gpu`` is not "never".

    Raises:
        InputError: "always", and torch finds no GPU.
    """
    found = torch.cuda.is_available()
    if use_gpu == "always" and not found:
        raise InputError("use_gpu: expected a GPU on this machine, got none that torch can use")
    return torch.device("cuda" if found and use_gpu != "never" else "cpu")


def one_process(
    num_modalities: int, device: torch.device | None = None, notice: Notice | None = None
) -> Mesh:
    """The mesh of a single process that hosts every modality."""
    return Mesh(0, 1, num_modalities, 1, device or torch.device("cpu"), notice=notice or Notice())


def meet_by_file(path: str, rank: int, world_size: int, timeout_seconds: float) -> None:
    """Make torch's default process group (gloo) on one machine; ``path``: a file that does not exist yet."""
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=world_size, timeout=timeout
    )


def process_mesh(
    num_modalities: int,
    *,
    groups: int = 0,
    device: torch.device | None = None,
    timeout_seconds: float = 300.0,
    notice: Notice | None = None,
    share_memory: bool = True,
) -> Mesh:
    """This process's place, from torch's default process group; every worker must call it together.

    Args:
        groups: G, 0 = :func:`modality_groups`.
        notice: what this process hears.
        share_memory: workers of one machine exchange through memory instead of sockets.

    Raises:
        ValueError: ``groups`` does not divide the number of workers or exceeds the number of modalities.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = check_groups(world, num_modalities, groups)
    device = device or torch.device("cpu")
    if world == 1:
        return one_process(num_modalities, device, notice)
    timeout = timedelta(seconds=timeout_seconds)
    replica, group = divmod(rank, groups)
    modality_axis = replica_axis = None
    for r in range(world // groups):
        made = dist.new_group([r * groups + g for g in range(groups)], timeout=timeout)
        modality_axis = made if r == replica else modality_axis
    for g in range(groups):
        made = dist.new_group([r * groups + g for r in range(world // groups)], timeout=timeout)
        replica_axis = made if g == group else replica_axis
    axes = (modality_axis, replica_axis)
    share = share_memory and device.type == "cpu"
    names = ("modality group", "replica", "rank")
    every = zip((*axes, dist.group.WORLD), names, strict=True)
    one, other, all_of_them = (
        _in_common(axis, timeout_seconds, what) if share else None for axis, what in every
    )
    return Mesh(
        *(rank, world, num_modalities, groups, device),
        *axes,
        *(one, other, all_of_them),
        notice=notice or Notice(),
    )


def _in_common(axis: dist.ProcessGroup | None, timeout_seconds: float, what: str) -> SharedMemory | None:
    """What an axis of two workers or more exchanges through; collective over it."""
    if axis is None or dist.get_world_size(axis) == 1:
        return None
    return SharedMemory(axis, timeout_seconds, what)


def check_groups(num_workers: int, num_modalities: int, groups: int) -> int:
    """G for so many workers: ``groups`` if it fits, the default when 0; raises ValueError when it does not fit."""
    if groups == 0:
        return modality_groups(num_workers, num_modalities)
    if num_workers % groups or groups > num_modalities:
        raise ValueError(
            f"modality_groups = {groups} must divide num_workers = {num_workers} and be at most "
            f"the number of modalities, {num_modalities}"
        )
    return groups
