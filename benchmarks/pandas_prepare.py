"""The straightforward script that bench_prepare.py measures `prepare` against: pandas and SciPy, all in memory.

    python benchmarks/pandas_prepare.py SOURCE OUTPUT

It numbers the ids, drops repeated pairs, splits 8:1:1 at random, builds the symmetric CSR of the train pairs and writes
it all; features become unit rows in float16. It checks nothing and writes no checksums.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse


def prepare(source: Path, output: Path) -> None:
    output.mkdir(parents=True)
    if (source / "interactions.parquet").exists():
        table = pd.read_parquet(source / "interactions.parquet")
    else:
        table = pd.read_csv(source / "interactions.csv")
    user, users = pd.factorize(table["user"], sort=True)
    item, items = pd.factorize(table["item"], sort=True)
    pairs = pd.DataFrame({"user": user.astype(np.int32), "item": item.astype(np.int32)}).drop_duplicates()
    order = np.random.default_rng(0).permutation(len(pairs))
    first, second = int(0.8 * len(pairs)), int(0.9 * len(pairs))
    parts = {"train": order[:first], "valid": order[first:second], "test": order[second:]}
    splits = {name: pairs.iloc[rows].sort_values(["user", "item"]) for name, rows in parts.items()}
    train = splits["train"]
    adjacency = sparse.coo_matrix(
        (np.ones(len(train), bool), (train["user"], train["item"])), shape=(len(users), len(items))
    )
    graph = sparse.bmat([[None, adjacency], [adjacency.T, None]], format="csr")
    graph.sort_indices()
    for name, part in splits.items():
        part.to_parquet(output / f"{name}.parquet", index=False)
    pd.DataFrame({"id": users}).to_parquet(output / "users.parquet")
    pd.DataFrame({"id": items}).to_parquet(output / "items.parquet")
    np.save(output / "indptr.npy", graph.indptr.astype(np.int64))
    np.save(output / "indices.npy", graph.indices.astype(np.int32))
    ids, vectors = np.load(source / "ids.npy"), np.load(source / "text.npy")
    row = pd.Series(np.arange(len(ids)), index=ids).reindex(items).to_numpy()
    features = vectors[row.astype(np.int64)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.save(output / "text.npy", features.astype(np.float16))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
