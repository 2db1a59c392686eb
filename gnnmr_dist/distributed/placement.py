"""Whether a cluster, as it is, can hold the workers; no rank, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnnmr_dist.sections import ClusterSettings


def placement_problem(nodes: Sequence[Mapping[str, float]], cluster: ClusterSettings) -> str | None:
    """Why ``nodes`` (their total resources) cannot hold the workers, in one line; None when they can."""
    wanted = worker_resources(cluster, gpus=uses_gpus(nodes, cluster))
    room = _room(nodes, wanted)
    if room >= fewest_workers(cluster):
        return None
    need = " and ".join(f"{amount:g} {key}" for key, amount in wanted.items())
    have = (
        "; ".join(" and ".join(f"{node.get(key, 0.0):g} {key}" for key in wanted) for node in nodes)
        or "no node"
    )
    return (
        f"{'min' if cluster.min_workers else 'num'}_workers: expected at most {room} workers of {need} each on this "
        f"cluster ({len(nodes)} nodes: {have}), got {fewest_workers(cluster)}"
    )


def fewest_workers(cluster: ClusterSettings) -> int:
    """How many workers there must be room for."""
    return cluster.min_workers or cluster.num_workers


def uses_gpus(nodes: Sequence[Mapping[str, float]], cluster: ClusterSettings) -> bool:
    """Whether each worker gets a GPU: as the settings say; ``auto`` = when ``nodes`` have one for all that must be."""
    if cluster.use_gpu != "auto":
        return cluster.use_gpu == "always"
    return _room(nodes, worker_resources(cluster, gpus=True)) >= fewest_workers(cluster)


def worker_resources(cluster: ClusterSettings, *, gpus: bool) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if gpus else {})


def _room(nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    return sum(int(min(node.get(key, 0.0) / amount for key, amount in wanted.items())) for node in nodes)
