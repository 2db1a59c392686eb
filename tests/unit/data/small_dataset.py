"""A small data set with all kinds of modality, as arguments of write_dataset for tests to change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gnnmr_dist.data.writer import ModalityData

NUM_USERS, NUM_ITEMS = 12, 10


def pairs(users: Any, items: Any, **more: Any) -> Any:
    columns = {"user": np.asarray(users, np.int32), "item": np.asarray(items, np.int32), **more}
    return pa.table(columns)


def arguments(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    keys = random.permutation(NUM_USERS * NUM_ITEMS)[:60]
    users, items = np.divmod(keys, NUM_ITEMS)
    times = random.integers(0, 10**9, 60)
    weights = random.random(60, np.float32)
    parts = {"train": slice(0, 40), "valid": slice(40, 50), "test": slice(50, 60)}
    present = np.arange(NUM_ITEMS) != 3
    codes = np.where(present, np.arange(NUM_ITEMS) % 4, -1).astype(np.int32)
    lengths = np.where(present, 1 + np.arange(NUM_ITEMS) % 3, 0)
    tags = random.integers(0, 5, int(lengths.sum())).astype(np.int32)
    dense = random.standard_normal((NUM_ITEMS, 6), np.float32)
    return {
        "name": "small",
        "users": pa.table({"id": [f"user {u}" for u in range(NUM_USERS)]}),
        "items": pa.table(
            {"id": np.arange(NUM_ITEMS) + 100, "title": [f"Title {i}" if i != 7 else None for i in range(10)]}
        ),
        "splits": {
            name: pairs(users[part], items[part], timestamp=times[part], weight=weights[part])
            for name, part in parts.items()
        },
        "modalities": [
            ModalityData("text", "dense", 6, present, dense),
            ModalityData("image", "dense", 6, present, dense.astype(np.float16)),
            ModalityData("genre", "category", 4, present, codes, vocabulary=["a", "b", "c", "d"]),
            ModalityData(
                "tags",
                "bag",
                5,
                present,
                offsets=np.concatenate([[0], np.cumsum(lengths)]),
                codes=tags,
                vocabulary=["v", "w", "x", "y", "z"],
            ),
        ],
        "provenance": {"source": "made up", "split": {"method": "random", "seed": seed}},
    }
