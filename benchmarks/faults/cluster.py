"""Nodes of one machine, and the processes on them that a campaign kills."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cluster import local
from cluster.processes import Process, find, name_of

NODES = 3


class Cluster:
    """A rehearsal of three nodes with one CPU each; two workers still fit when one node is lost."""

    def __init__(self) -> None:
        self._holder = Path(tempfile.mkdtemp(prefix="gk-"))  # short: Unix sockets' paths are
        self.directory = self._holder / "c"

    def __enter__(self) -> Cluster:
        try:
            local.up(self.directory, NODES, 1, dashboard=False)
        except BaseException:
            shutil.rmtree(self._holder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        local.down(self.directory)
        shutil.rmtree(self._holder)

    def variables(self) -> dict[str, str]:
        """What a driver needs to join."""
        return local.client_variables(self.directory, local.read_state(self.directory))

    def workers(self) -> list[int]:
        """Ray Train's workers."""
        return self._titled("ray::RayTrainWorker")

    def controllers(self) -> list[int]:
        """Ray Train's controller, an actor beside the command."""
        return self._titled("ray::TrainController")

    def raylets(self) -> list[int]:
        """Raylets of nodes that host a worker, the head's not among them: with it the whole cluster is lost."""
        nodes = [node for node in local.read_state(self.directory).nodes if node.name != "head"]
        groups = [local.processes(node) for node in nodes]
        hosts = [
            group for group in groups if any(title(p.pid).startswith("ray::RayTrainWorker") for p in group)
        ]
        return [p.pid for group in hosts for p in group if name_of(p.pid) == "raylet"]

    def mend(self) -> None:
        """Start lost nodes anew."""
        local.mend(self.directory)

    def _titled(self, prefix: str) -> list[int]:
        nodes = local.read_state(self.directory).nodes
        return [p.pid for node in nodes for p in local.processes(node) if title(p.pid).startswith(prefix)]


def title(pid: int) -> str:
    """A process's command line as it shows it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def there(pid: int) -> Process | None:
    """The process, None when it is gone."""
    return find(pid)
