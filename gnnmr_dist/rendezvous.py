"""How the workers of a run meet: torch's process group made through Ray, and what each of them hears there."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import uuid
from contextlib import suppress
from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.execution.context import get_train_context

from gnnmr_dist.connection import LOOPBACK
from gnnmr_dist.distributed.mesh import meet_by_file
from gnnmr_dist.notice import Notice, Wish
from gnnmr_dist.sections import ClusterSettings

NOTICE = Notice()
"""A worker's: its process has one training function, and signals are heard in another thread."""


def _listen() -> None:
    """In a worker's main thread: SIGTERM (a node's shutdown) saves first; Ray's own handler would exit at once."""
    signal.signal(signal.SIGTERM, lambda *_: NOTICE.tell(Wish.MOVE))


def being_drained() -> bool:
    """Whether Ray has told this worker that a node of the run is being drained.

    The public ``ray.train.get_preemption_info`` is a round over all workers by way of an actor: too slow for a step.
    """
    return get_train_context().preemption_context.preemption_info is not None


def torch_config(cluster: ClusterSettings, gpus: bool) -> Any:
    """How Ray is to make the process group of a run's workers."""
    alone = ray.util.get_node_ip_address() == LOOPBACK and not gpus
    config = _TorchOnOneMachine if alone else _Torch
    return config(backend="nccl" if gpus else "gloo", timeout_s=math.ceil(cluster.timeout_seconds))


class _Listening(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group as Ray makes it, and workers that hear SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self.meet(worker_group, backend_config)
        worker_group.execute(_listen)

    def meet(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)


class _Torch(ray.train.torch.TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type:
        return _Listening


class _MeetByFile(_Listening):
    """Workers of one machine meet through a file: the store that Ray has torch open listens on every address."""

    place = ""

    def meet(self, worker_group: Any, backend_config: Any) -> None:
        place = self.place = os.path.join(tempfile.gettempdir(), f"gnnmr-{uuid.uuid4().hex}")
        world, seconds = len(worker_group), backend_config.timeout_s
        call = worker_group.execute_single_async
        ray.get([call(rank, meet_by_file, place, rank, world, seconds) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            with suppress(FileNotFoundError):  # torch removes it where every worker ended in peace
                os.unlink(self.place)


class _TorchOnOneMachine(ray.train.torch.TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type:
        return _MeetByFile
