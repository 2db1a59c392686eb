"""`ray start` for nodes of one machine that listen on loopback only: `python -m cluster.loopback_node [OPTION ...]`.

Ray 2.60 replaces 127.0.0.1 by the machine's outward address, and then listens on every address, unless clusters of
several nodes are off (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0); but then it starts no second node. Here the address stays
as it was given. The variable must be 0 all the same, for the processes that the node starts.
"""

from __future__ import annotations

import sys

from ray._private import ray_constants, services
from ray.scripts.scripts import start


def main() -> None:
    """Start a node with the options of `ray start`."""
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = str
    start(sys.argv[1:])


if __name__ == "__main__":
    main()
