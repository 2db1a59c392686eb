"""How many trials a cluster holds at once, so that none waits for another for ever; no Ray.

A trial with workers is a driver of 1 CPU and, placed later and all at once, its workers. Drivers that fill the CPUs
their own workers wait for would be a deadlock; the rules here count drivers at the worst places they could stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnnmr_dist.distributed.placement import uses_gpus, worker_resources
from gnnmr_dist.errors import InputError
from gnnmr_dist.sections import ClusterSettings

Node = Mapping[str, float]
DRIVER_CPUS = 1


def trial_resources(nodes: Sequence[Node], cluster: ClusterSettings) -> dict[str, float]:
    """What a trial itself holds: a worker's share where it trains in its own process, else the driver's CPU."""
    if cluster.num_workers:
        return {"CPU": float(DRIVER_CPUS)}
    alone = cluster.model_copy(update={"num_workers": 1, "min_workers": 0})
    return worker_resources(alone, gpus=uses_gpus(nodes, alone))


def most_trials(nodes: Sequence[Node], cluster: ClusterSettings, limit: int) -> int:
    """The largest number of trials, up to ``limit``, that can always all run, wherever Ray puts their drivers.

    Args:
        nodes: total resources of every node.
        cluster: workers of one trial, and what each needs.
        limit: more are not wanted.
    """
    if cluster.num_workers == 0:
        wanted = trial_resources(nodes, cluster)
        return min(limit, sum(_slots(node, wanted, 0) for node in nodes))
    wanted = worker_resources(cluster, gpus=uses_gpus(nodes, cluster))
    limit = min(limit, sum(int(node.get("CPU", 0.0)) for node in nodes))
    room, lost = sum(_slots(node, wanted, 0) for node in nodes), _lost(nodes, wanted, limit)
    return max(n for n in range(limit + 1) if n == 0 or room - lost[n] >= n * cluster.num_workers)


def _slots(node: Node, wanted: Mapping[str, float], drivers: int) -> int:
    """Workers that fit on a node beside some drivers."""
    free = dict(node) | {"CPU": node.get("CPU", 0.0) - drivers * DRIVER_CPUS}
    return max(0, int(min(free.get(key, 0.0) / amount + 1e-9 for key, amount in wanted.items())))


def _lost(nodes: Sequence[Node], wanted: Mapping[str, float], most: int) -> list[int]:
    """The most worker slots that 0, 1, ... ``most`` drivers can take away, over all ways to place them."""
    worst = [0] * (most + 1)
    for node in nodes:
        whole = _slots(node, wanted, 0)
        here = [whole - _slots(node, wanted, k) for k in range(min(most, int(node.get("CPU", 0.0))) + 1)]
        worst = [max(worst[n - k] + loss for k, loss in enumerate(here[: n + 1])) for n in range(most + 1)]
    return worst


def require_room(nodes: Sequence[Node], cluster: ClusterSettings, wanted: int | None, trials: int) -> int:
    """How many trials to run at once: ``wanted``, or as many as always fit.

    Raises:
        InputError: not one trial fits, or fewer than wanted.
    """
    most = most_trials(nodes, cluster, max(trials, wanted or 1))
    each = " and ".join(f"{amount:g} {key}" for key, amount in _worker(nodes, cluster).items())
    needs = (
        f"{DRIVER_CPUS} CPU beside its {cluster.num_workers} workers of {each}"
        if cluster.num_workers
        else each
    )
    have = "; ".join(f"{n.get('CPU', 0.0):g} CPU and {n.get('GPU', 0.0):g} GPU" for n in nodes) or "no node"
    if most == 0:
        raise InputError(
            f"num_workers: expected room for one trial, which holds {needs}, on this cluster ({have}); it has none "
            "that is sure wherever the trial is placed"
        )
    if wanted is not None and wanted > most:
        raise InputError(
            f"--concurrency: expected at most {most} trials of {needs} on this cluster ({have}), got {wanted}"
        )
    return min(wanted or most, trials)


def _worker(nodes: Sequence[Node], cluster: ClusterSettings) -> dict[str, float]:
    one = cluster.model_copy(update={"num_workers": max(1, cluster.num_workers), "min_workers": 0})
    return worker_resources(one, gpus=uses_gpus(nodes, one))
