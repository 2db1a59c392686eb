"""Kills, again and again, what a run on Ray consists of, and checks that nothing is lost.

``python benchmarks/kill_campaign.py --directory DIR`` starts nodes on this machine (`python -m cluster.local`), trains
planted data with Ray Train workers, kills a worker, a raylet, the command or Ray Train's controller with SIGKILL, at
random or while a checkpoint is written, and goes on as a user would: `train --resume` where the command has ended.
Every kill must be followed by a new checkpoint within ``--limit`` seconds; every finished run must equal one that was
never disturbed, bit for bit, and leave no half-written file. Kills are kept in DIR/kills.jsonl: a campaign that is
cut off goes on from there.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path

from faults.checks import check_run, undisturbed_run
from faults.cluster import Cluster
from faults.record import Kills, report
from faults.run import Campaign

from gnnmr_dist.data.synthetic import synthetic_dataset

KINDS = ("worker", "raylet", "command", "controller")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--directory", type=Path, required=True, help="where runs, nodes and the record lie")
    made.add_argument(
        "--kills", type=int, default=100, help="kills in all, earlier ones of DIR among them [100]"
    )
    made.add_argument("--seed", type=int, default=0, help="of kinds, moments and victims [0]")
    made.add_argument(
        "--limit", type=float, default=600.0, help="seconds within which a run must go on [600]"
    )
    made.add_argument("--epochs", type=int, default=100, help="of one run, of some 27 steps each [100]")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed [all]")
    made.add_argument("--output", type=Path, help="results file [none: only DIR/kills.jsonl]")
    return made


def burst(kinds: list[str], seed: int, number: int) -> tuple[list[str], bool, random.Random]:
    """What the burst that begins with kill ``number`` hits: one to three kills, of raylets one at most."""
    chance = random.Random(f"{seed} burst {number}")
    wanted = [plan(kinds, seed, number + more) for more in range(1 + chance.randrange(3))]
    while wanted.count("raylet") > 1:
        wanted.remove("raylet")  # two workers need two nodes
    return wanted, chance.random() < 2 / 3, chance


def plan(kinds: list[str], seed: int, number: int) -> str:
    """What kill ``number`` hits: all kinds in turn, each turn in an order of its own."""
    turn, place = divmod(number, len(kinds))
    order = list(kinds)
    random.Random(f"{seed} turn {turn}").shuffle(order)
    return order[place]


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of all that ends the nodes
    home = options.directory.absolute()
    home.mkdir(parents=True, exist_ok=True)
    dataset = home / "data"
    if not (dataset / "manifest.json").exists():
        sizes = {"num_users": 200, "num_items": 120, "num_modalities": 2, "interactions_per_user": 10}
        synthetic_dataset(str(dataset), **sizes)
    whole = undisturbed_run(home, dataset, options.epochs)
    kills = Kills(home / "kills.jsonl")
    with Cluster() as cluster:
        while len(kills.done) < options.kills:
            campaign = Campaign(home / kills.next_run(), dataset, options.epochs, options.limit, cluster)
            with campaign:
                while len(kills.done) < options.kills and not campaign.finished():
                    for kill in campaign.burst(*burst(options.kinds, options.seed, len(kills.done))):
                        kills.add(kill)
                campaign.complete()
            check_run(campaign.output, whole)
            kills.end_run(campaign.output.name)
    lines = report(kills)
    if options.output is not None:
        options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
        print(f"wrote {options.output}")
    print("\n".join(lines[-len(KINDS) - 6 :]))
    return 0 if all(kill["recovered"] for kill in kills.done) else 1


if __name__ == "__main__":
    sys.exit(main())
