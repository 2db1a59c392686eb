"""Figure 5's data: for funds with few holdings, what they hold, the truth and the recommendations, with sectors.

The funds are chosen by their number of holdings, not by how well the recommendations turn out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gnnmr_dist import api, storage
from gnnmr_dist.data.dataset import Dataset, Interactions
from gnnmr_dist.data.feature_tables import CategoryTable
from gnnmr_dist.data.interactions import read_parquet
from study.datasets import recipe_of
from study.extras import CASE
from study.plan import Job, Plan
from study.results import Findings, headline
from study.worker import RUN

UNKNOWN = "unknown"


def write_case(plan: Plan, output: Path, data: Path | None) -> None:
    """Write OUTPUT/case.json once the case's run and model are there; an older file stays while they are not."""
    rule = plan.case
    if not rule or rule["set"] not in plan.sets:
        return
    job = case_job(plan)
    result = Findings(plan, output).get(job)
    if result is None or not (result.home / RUN / "model").exists():
        return
    recipe = plan.sets[job.set].recipe
    folder = None if recipe is None or data is None else data / job.set
    if recipe is not None and (folder is None or not folder.is_dir()):
        return
    run = api.load_run(str(result.home / RUN), str(output / "sets" / job.set / "own" / "data"))
    row = headline("gnnmr", run.rows)
    sectors = sectors_of(run.dataset, recipe, folder, rule["column"])
    found = [_fund(run, row, user, rule["k"], sectors) for user in chosen(run.dataset, rule)]
    content = {
        "rule": dict(rule),
        "row": row,
        "seed": job.seed,
        "funds": found,
        "sectors": sorted(set(sectors)),
    }
    storage.write_bytes_atomic(
        output / CASE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    )


def case_job(plan: Plan) -> Job:
    """The job whose recommendations the case shows."""
    return Job(plan.case["set"], "own", "gnnmr", 0)


def chosen(dataset: Dataset, rule: Mapping[str, Any]) -> list[int]:
    """Users with the fewest train items, ``least`` or more, among those with ``truth`` test items or more."""
    train = dataset.graph.degree()[: dataset.num_users]
    test = np.bincount(dataset.interactions("test").users, minlength=dataset.num_users)
    able = np.flatnonzero((train >= rule["least"]) & (test >= rule["truth"]))
    return [int(user) for user in able[np.argsort(train[able], kind="stable")][: rule["funds"]]]


def sectors_of(dataset: Dataset, recipe: str | None, folder: Path | None, column: str) -> list[str]:
    """The sector of every item [I]: a column of the raw item table, or a category modality of that name."""
    if recipe is not None and folder is not None:
        items = recipe_of(recipe, "own").items
        assert items is not None
        table = read_parquet(folder / items.file, [*([items.id] if items.id else []), column])
        ids = table[items.id].to_pylist() if items.id else range(table.num_rows)
        known = dict(zip(map(str, ids), table[column].to_pylist(), strict=True))
        return [str(known.get(str(item)) or UNKNOWN) for item in dataset.item_ids]
    words, features = dataset.vocabulary(column), dataset.features(column)
    assert isinstance(features, CategoryTable)
    return [words[code] if code >= 0 else UNKNOWN for code in features.codes.tolist()]


def _fund(run: api.Run, row: str, user: int, k: int, sectors: list[str]) -> dict[str, Any]:
    dataset = run.dataset
    items = {split: _items(dataset.interactions(split), user) for split in ("train", "test")}
    name = dataset.user_ids[user]
    table = run.recommend([name], k=k, row=row)
    lists = dataset.item_number(table["item"].to_pylist()).tolist()

    def boxes(numbers: list[int]) -> list[dict[str, Any]]:
        truth = set(items["test"])
        return [{"title": dataset.item_titles[i], "sector": sectors[i], "hit": i in truth} for i in numbers]

    title = _user_title(dataset, user)
    return {
        "user": title,
        "history": boxes(items["train"]),
        "truth": boxes(items["test"]),
        "lists": boxes(lists),
    }


def _items(pairs: Interactions, user: int) -> list[int]:
    return [int(item) for item in pairs.items[pairs.users == user]]


def _user_title(dataset: Dataset, user: int) -> str:
    table = read_parquet(dataset.directory / "users.parquet")
    return str(table["title"][user].as_py() if "title" in table.column_names else dataset.user_ids[user])
