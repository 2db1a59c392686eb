"""Our training of two modalities against the models of an MMRec checkout on the same data, side by side.

``--peer DIR`` is a checkout of https://github.com/enoche/MMRec (the user's; nothing of it is kept here, and it is
not changed); ``--dataset DIR`` is one of our data sets and may stand several times. It is written out in MMRec's
layout, and MMRec's own quick_start trains LightGCN (one model, no features) and MMGCN (both modalities) at its own
batch size.
Ours trains the same two modalities at the same batch size and embedding size with the same number of threads: with
two or more, two workers that divide them, one for each modality, as on Ray; with one, one process. Sides take turns,
epoch after epoch. Epoch times are of training alone, MMRec's from its log;
the first epoch is left out of the median. The same validation Recall@20: the best value of whichever of the two sides
has the lower best, within the epochs run.

Headline: the smallest over the data sets of MMRec's LightGCN epoch / ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.csv
from measure import HERE, Report, parser, spread
from paced import Trainer, in_turns, open_modalities

from gnnmr_dist.data.dataset import Dataset

IMAGE, TEXT = "image_feat.npy", "text_feat.npy"


def write_layout(dataset: Dataset, directory: Path) -> None:
    """The data set in MMRec's layout: NAME.inter with x_label 0, 1, 2, and one feature matrix for each modality.

    An item without a modality has a row of zeros there.
    """
    directory.mkdir(parents=True)
    parts = []
    for label, split in enumerate(("train", "valid", "test")):
        found = dataset.interactions(split)
        labels = np.full(found.users.size, label)
        parts.append(pa.table({"userID": found.users, "itemID": found.items, "x_label": labels}))
    options = pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="none")
    pyarrow.csv.write_csv(pa.concat_tables(parts), directory / f"{directory.name}.inter", options)
    for file, info in zip((TEXT, IMAGE), dataset.modalities, strict=True):
        np.save(directory / file, dataset.features(info.name).values.astype(np.float32), allow_pickle=False)


def mmrec(model: str, checkout: Path, home: Path, name: str, options: argparse.Namespace) -> Trainer:
    """One of MMRec's models; settings not given here are those of its configuration files."""
    config = {
        "model": model,
        "dataset": name,
        "threads": options.threads,
        "use_gpu": False,
        "data_path": f"{home}/",
        "inter_file_name": f"{name}.inter",
        "USER_ID_FIELD": "userID",
        "ITEM_ID_FIELD": "itemID",
        "TIME_FIELD": "timestamp",
        "field_separator": "\t",
        "vision_feature_file": IMAGE,
        "text_feature_file": TEXT,
        "embedding_size": options.dim,
        "train_batch_size": options.batch_size,
        "epochs": 10**6,  # as many as it is asked for
        "stopping_step": 10**6,
        "n_layers": [2] if model == "LightGCN" else 2,
        "reg_weight": [1e-3],
        "learning_rate": 1e-3 if model == "LightGCN" else [1e-3],
    }
    command = [sys.executable, str(HERE / "mmrec_run.py"), str(checkout.resolve()), json.dumps(config)]
    return Trainer(model, command, options.threads, home)


def ours(path: Path, names: list[str], options: argparse.Namespace) -> Trainer:
    given = {
        "dataset": path.resolve(),
        "epochs": options.epochs,
        "batch-size": options.batch_size,
        "dim": options.dim,
        "threads": options.threads,
        "workers": min(options.threads, len(names)),
        "learning-rate": options.learning_rate,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    words += ["--modalities", *names, "--fan-out", *map(str, options.fan_out), "--paced"]
    return Trainer("ours", [sys.executable, str(HERE / "ours_run.py"), *words], options.threads)


def to_same_quality(one: Trainer, other: Trainer) -> str:
    """Training seconds each needed to the best value that both reached."""
    value = min(max(one.valid), max(other.valid))
    return f"Recall@20 {value:.4f}: {one.seconds_to(value):.1f} s, ours {other.seconds_to(value):.1f} s"


def one_set(path: Path, options: argparse.Namespace, report: Report) -> float:
    dense = [info.name for info in open_modalities(path, None).modalities]
    names = sorted(dense, key=lambda name: name != "text")[:2]  # text, and the other
    epochs = {"ours": options.epochs, "LightGCN": options.lightgcn_epochs, "MMGCN": options.mmgcn_epochs}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        home = Path(directory)
        (home / "configs").symlink_to((options.peer / "src" / "configs").resolve())
        write_layout(open_modalities(path, names), home / path.resolve().name)
        trainers = [ours(path, names, options)]
        for model in options.models:
            trainers.append(mmrec(model, options.peer, home, path.resolve().name, options))
        for trainer in trainers:
            stack.enter_context(trainer)
        in_turns(trainers, epochs)
    mine, peers = trainers[0], trainers[1:]
    report.say(f"## {path.name}: {', '.join(names)}; batch {options.batch_size}, {options.threads} thread(s)")
    rows = [
        ("ours, two modalities", len(mine.valid), spread(mine.seconds[1:]), "", f"{max(mine.valid):.4f}", "")
    ]
    quotients = {}
    for peer in peers:
        quotients[peer.name] = median(peer.seconds[1:]) / median(mine.seconds[1:])
        cells = (
            len(peer.valid),
            spread(peer.seconds[1:]),
            f"{quotients[peer.name]:.2f}",
            f"{max(peer.valid):.4f}",
        )
        rows.append((f"MMRec {peer.name}", *cells, to_same_quality(peer, mine)))
    report.table(
        ("", "epochs", "epoch, s", "its epoch / ours", "best Recall@20", "training to the same"), rows
    )
    return quotients.get("LightGCN", min(quotients.values()))


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--peer", type=Path, required=True, help="MMRec checkout")
    made.add_argument("--dataset", type=Path, action="append", required=True, help="may stand several times")
    made.add_argument("--models", nargs="+", default=["LightGCN", "MMGCN"])
    made.add_argument("--batch-size", type=int, default=2048, help="of every side [2048, MMRec's own]")
    made.add_argument("--dim", type=int, default=64)
    made.add_argument("--fan-out", type=int, nargs="+", default=[20, 20], help="ours [20 20]")
    made.add_argument("--learning-rate", type=float, default=2e-3, help="ours [2e-3]; MMRec's is 1e-3")
    made.add_argument("--epochs", type=int, default=12, help="ours [12]")
    made.add_argument("--lightgcn-epochs", type=int, default=20)
    made.add_argument("--mmgcn-epochs", type=int, default=3)
    options = made.parse_args()
    if options.quick:
        options.epochs = options.lightgcn_epochs = options.mmgcn_epochs = 2
    report = Report("peer", "Training against MMRec's models", options)
    report.close(min(one_set(path, options, report) for path in options.dataset))


if __name__ == "__main__":
    main()
