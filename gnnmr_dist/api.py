"""The notebook's view: open a data set, fit, load a run, evaluate, recommend (docs/api.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gnnmr_dist import storage
from gnnmr_dist.config import Settings, build, fields
from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.evaluate import evaluate_run
from gnnmr_dist.loaded import LoadedRun, Protocol, open_run
from gnnmr_dist.new_items import read_new_items
from gnnmr_dist.recommend import Recommender
from gnnmr_dist.reporting import read_records
from gnnmr_dist.runs import METRICS
from gnnmr_dist.storage import Address
from gnnmr_dist.train import train

__all__ = ["Dataset", "Run", "fit", "load_run", "open_dataset"]

FloatArray = npt.NDArray[np.float32]


class Run:
    """A finished run. Embeddings are computed at the first call that needs them, then kept."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        return f"Run({self.path!r}: {self.dataset.name}, rows {', '.join(self.rows)})"

    @property
    def path(self) -> str:
        """Address of the run directory."""
        return self._loaded.directory.address

    @property
    def dataset(self) -> Dataset:
        """The data set it was trained on."""
        return self._loaded.dataset

    @property
    def settings(self) -> Settings:
        """All settings of the training."""
        return self._loaded.settings

    @property
    def rows(self) -> list[str]:
        """What to rank by: the modalities, then the ensembles."""
        return self._loaded.rows

    def recommend(
        self,
        user_ids: Sequence[str] | Sequence[int],
        k: int = 20,
        row: str | None = None,
        *,
        new_items: Address | None = None,
        include_seen: bool = False,
    ) -> Any:
        """The k best items of users by original id: a ``pyarrow.Table`` user, rank, item, title, score, cold.

        Args:
            user_ids: original ids; the table keeps their order.
            k: length of each list; shorter where a user has seen almost all.
            row: ensemble or modality to rank by; None = the best ensemble the run has.
            new_items: Parquet file of items the data set does not know, ranked among the others.
            include_seen: also recommend train items.

        Raises:
            InputError: an unknown user or row, k out of range, or new items that break a rule.
        """
        users = self.dataset.user_number(user_ids)
        new = None if new_items is None else read_new_items(new_items, self.dataset)
        return Recommender(self._loaded, k, row, new_items=new, include_seen=include_seen).table(users)

    def evaluate(
        self,
        split: str = "test",
        *,
        ks: Sequence[int] | None = None,
        baselines: bool = True,
        mask_valid: bool = False,
        among: str = "all",
        num_workers: int = 0,
    ) -> dict[str, dict[str, float]]:
        """Full ranking of a split: ``{row: {"Recall@20": value, ...}}``; writes no file. Skipped baselines have no row.

        ``among`` "cold" ranks only items without a train interaction.

        Raises:
            InputError: an unknown split, cut-offs out of range, or no cold item in the split.
            RunError: a worker failed.
        """
        protocol = Protocol(
            split, tuple(self.settings.evaluation.ks if ks is None else ks), mask_valid, among
        )
        return evaluate_run(self._loaded, protocol, baselines=baselines, num_workers=num_workers).rows

    def embeddings(self, row: str = "concatenation") -> tuple[FloatArray, FloatArray]:
        """Users [U, d'] and items [I, d'] of one row; their dot product is the score, up to the popularity fallback.

        Raises:
            InputError: an unknown row.
        """
        scorer = self._loaded.embeddings(row)
        return scorer.user_embeddings.cpu().numpy(), scorer.item_embeddings.cpu().numpy()

    def metrics_history(self) -> list[dict[str, Any]]:
        """One record per epoch of training: losses by modality, validation metrics where there were, times."""
        records = read_records(storage.join(self.path, METRICS))
        return [record for record in records if record["kind"] == "epoch"]


def load_run(path: Address, dataset: Address | None = None) -> Run:
    """Open a finished run; ``dataset`` tells where the data set is, if not where it was at training.

    Raises:
        InputError: no finished run is there, its files are damaged, or the data are other data.
    """
    return Run(open_run(path, dataset))


def fit(
    dataset: Dataset | Address,
    output: Address,
    settings: Settings | Mapping[str, Mapping[str, Any]] | None = None,
    **overrides: Any,
) -> Run:
    """Train into the new directory ``output`` and open the result.

    Args:
        dataset: an open data set, or where it is.
        output: run directory, new or empty.
        settings: nested by section, as in TOML: ``{"training": {"epochs": 20}}``; None = the defaults.
        overrides: single settings by name, which win: ``epochs=20, num_workers=2`` (0 workers = this process).

    Raises:
        InputError: an unknown setting or a value out of range, or ``output`` is not empty.
        RunError: training diverged or lost its workers.
    """
    data = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    home = str(output) if storage.is_uri(output) else os.path.abspath(output)
    train(data, home, _settings(settings, overrides))
    return load_run(home, data.path)


def _settings(
    given: Settings | Mapping[str, Mapping[str, Any]] | None, overrides: Mapping[str, Any]
) -> Settings:
    nested = (
        given.model_dump() if isinstance(given, Settings) else {k: dict(v) for k, v in (given or {}).items()}
    )
    single: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        if name not in fields():
            raise InputError(f"fit: expected settings among {', '.join(fields())}, got {name!r}")
        single.setdefault(fields()[name][0], {})[name] = value
    return build(("settings", nested), ("fit", single))
