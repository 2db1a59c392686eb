"""Wait until a cluster has its nodes: `python -m cluster.wait --nodes N [--seconds S]`, with RAY_ADDRESS set."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

import ray

from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.errors import InputError, RunError, innermost_error


def wait_for_nodes(address: str, nodes: int, seconds: float) -> None:
    """Return when at least ``nodes`` nodes are alive at ``address`` (host:port).

    Raises:
        RunError: they were not within ``seconds``.
    """
    limit, seen = time.monotonic() + seconds, "no answer"
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
            alive = sum(node["Alive"] for node in ray.nodes())
            seen = f"{alive} nodes"
        except (OSError, RuntimeError, ValueError) as error:
            alive, seen = 0, innermost_error(str(error))
        finally:
            ray.shutdown()
        if alive >= nodes:
            return
        if time.monotonic() > limit:
            raise RunError(f"{address}: expected {nodes} nodes within {seconds:g} s, got {seen}")
        time.sleep(1)


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m cluster.wait", description="Wait until a cluster has its nodes.")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to wait at most [300]")
    arguments: argparse.Namespace = parser.parse_args(argv)
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise InputError("RAY_ADDRESS: expected host:port of a cluster, got nothing")
    wait_for_nodes(address, arguments.nodes, arguments.seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return guarded(_command, argv)


if __name__ == "__main__":
    sys.exit(main())
