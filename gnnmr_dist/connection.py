"""A Ray to run on: the cluster that is named, or one of our own that only this machine can reach."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from gnnmr_dist.distributed.placement import placement_problem, uses_gpus
from gnnmr_dist.errors import InputError, innermost_error
from gnnmr_dist.memory import allocator_environment
from gnnmr_dist.sections import ClusterSettings

LOOPBACK = "127.0.0.1"


@contextmanager
def connected(cluster: ClusterSettings, beside: int = 0) -> Iterator[bool]:
    """A connection to the cluster that RAY_ADDRESS names, else to a private Ray on loopback; checked first.

    Yields whether each worker gets a GPU. ``beside``: CPUs that a Ray of our own has at least, beside the workers'.

    Whatever else runs on this machine is left alone: ``RAY_ADDRESS=auto`` asks for it. A Ray this process is
    connected to already is used as it is.

    Raises:
        InputError: no cluster at RAY_ADDRESS, or the workers can never be placed.
    """
    if ray.is_initialized():
        yield require_placement(cluster)
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        _join(address)
    else:
        _start_private(cluster, beside)
    try:
        yield require_placement(cluster)
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and "/" not in address:  # Ray itself would try for a minute, and not in one line
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS: expected a Ray cluster this process may join, got {address}: {innermost_error(str(error))} "
            "(where Ray's token authentication is on, RAY_AUTH_MODE=token and the cluster's token are needed)"
        ) from error


def _start_private(cluster: ClusterSettings, beside: int) -> None:
    """A Ray of our own on this machine, with enough logical CPUs for the workers (they may share cores).

    Ray gives a node the machine's outward address, even when told 127.0.0.1, unless clusters of several machines are
    off; its switch for that is read when Ray is imported, so the constant itself is set.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    needed = beside + int(-(-cluster.num_workers * cluster.cpus_per_worker // 1))
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=LOOPBACK,
        runtime_env={"env_vars": allocator_environment() | loopback},
    )


def require_placement(cluster: ClusterSettings) -> bool:
    """Whether each worker gets a GPU on the cluster as it is.

    Raises:
        InputError: it can never hold the workers (Ray itself would wait for ever).
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    problem = placement_problem(nodes, cluster)
    if problem is not None:
        raise InputError(problem)
    return uses_gpus(nodes, cluster)
