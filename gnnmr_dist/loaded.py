"""A finished run, opened: data set and encoders give vectors, scorers and results. Knows ranks only through the mesh.

Axes: M modalities, U users, I items, N = U + I nodes, d embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist import storage
from gnnmr_dist.baselines import CLOSED_FORM, ClosedForm
from gnnmr_dist.checkpoint import MANIFEST, Checkpoint
from gnnmr_dist.config import Settings, build
from gnnmr_dist.data.dataset import Dataset, Interactions, Verify, open_dataset
from gnnmr_dist.distributed.mesh import Mesh, local_device, one_process
from gnnmr_dist.ease import BaselineSkipped, ItemWeightScorer, RowWeightScorer
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.evaluation import (
    ENSEMBLES,
    Relevant,
    RowResult,
    evaluate,
    make_scorer,
    modality_vectors,
    presence_table,
    relevant_items,
)
from gnnmr_dist.fusion import FUSED, LINEAR, FusedScorer, Fusion, fit_linear_peer
from gnnmr_dist.mapped import reader_maker
from gnnmr_dist.members import Member, item_features, members_of
from gnnmr_dist.models.chosen_value import ChosenValue
from gnnmr_dist.models.encoder import Network
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.networks import build_network
from gnnmr_dist.ranking import EmbeddingScorer, ItemLists, Scorer, item_lists, train_counts
from gnnmr_dist.runs import MODEL, RunDirectory
from gnnmr_dist.storage import Address
from gnnmr_dist.training import load_weights, parameter_dtype


@dataclass(frozen=True)
class LoadedRun:
    """The best model of a run and its data set; vectors are computed once, when first asked for."""

    directory: RunDirectory
    model: Checkpoint
    settings: Settings
    dataset: Dataset
    members: tuple[Member, ...]
    mesh: Mesh

    @property
    def names(self) -> list[str]:
        """The M members, in order."""
        return [member.name for member in self.members]

    @property
    def rows(self) -> list[str]:
        """What differs among all it can rank by: members, (of more than one) ensembles, linear peer, fusion."""
        return [*self.names, *(ENSEMBLES if len(self.members) > 1 else ()), *self._linear_rows]

    @property
    def _linear_rows(self) -> tuple[str, ...]:
        return () if self.fusion is None else (LINEAR, FUSED)

    @property
    def best_row(self) -> str:
        """What to rank by unless told otherwise: the fusion where there is one, else the concatenation.

        Of a method in closed form: its only row.
        """
        if self.closed_form is not None:
            return self.names[0]
        return "concatenation" if self.fusion is None else FUSED

    @property
    def closed_form(self) -> ClosedForm | None:
        """What it fits, where that is in closed form."""
        return CLOSED_FORM.get(self.settings.model.method)

    @property
    def value(self) -> float:
        """Of a method in closed form: the value that validation chose."""
        network = self.encoders[0][1]
        assert isinstance(network, ChosenValue)
        return float(network.value)

    @cached_property
    def fitted(self) -> Scorer:
        """A method in closed form, fitted anew: a function of the train data and :attr:`value`."""
        assert self.closed_form is not None
        found = self.closed_form.fit(self.dataset.graph, self.value)
        assert not isinstance(found, BaselineSkipped)  # it fitted when it was trained
        return found

    @cached_property
    def fusion(self) -> Fusion | None:
        """How the linear peer joins in, as chosen when the run was finished; None where it has none."""
        return self.directory.fusion()

    @cached_property
    def linear(self) -> ItemWeightScorer | RowWeightScorer:
        """The linear peer of a run that has one, fitted anew: a function of the train data."""
        assert self.fusion is not None
        features = item_features(self.dataset, self.members) if self.fusion.linear.feature_weight else None
        return fit_linear_peer(self.dataset.graph, self.fusion.linear, features)

    @cached_property
    def encoders(self) -> list[tuple[Member, Network]]:
        """The networks this worker hosts, with the best weights.

        Raises:
            InputError: the weights do not fit the settings.
        """
        dtype = parameter_dtype(self.settings.training.precision)
        hosted = [self.members[m] for m in self.mesh.hosted]
        return [(member, self._encoder(member).to(self.mesh.device, dtype).eval()) for member in hosted]

    def _encoder(self, member: Member) -> Network:
        settings, shape = self.settings, (self.dataset.num_users, self.dataset.num_items)
        layers = len(settings.sampling.num_neighbors)
        make = partial(self._make, dtype=parameter_dtype(settings.training.precision))
        encoder = build_network(*shape, member.inputs, settings.model, layers, key=0, make=make)
        try:
            part = "best" if self.model.has(member.name, "best") else "weights"
            load_weights(encoder, self.model.tensors(member.name, part))
        except ValueError as error:
            raise bad_input(self.model.address, f"weights of {member.name}", str(error)) from None
        return encoder

    @cached_property
    def vectors(self) -> Tensor:
        """Score vectors of all nodes of all members, float32 [M, N, d]; every worker must ask together."""
        return modality_vectors(self.encoders, self.dataset, self.settings.model, self.mesh, self._make)

    @cached_property
    def present(self) -> Tensor | None:
        """Bool [M, I] where missing modalities are left out of the concatenation; else None."""
        table = torch.from_numpy(presence_table(self.dataset, self.members)).to(self.mesh.device)
        return table if self.hides and not bool(table.all()) else None

    @property
    def _make(self) -> Maker:
        return reader_maker(self.settings.cluster, self.mesh.device)

    @property
    def hides(self) -> bool:
        """Whether the concatenation leaves missing modalities out."""
        return self.settings.evaluation.mask_missing_in_ensemble

    def require_row(self, row: str) -> None:
        """Raise InputError unless the run can rank by ``row``."""
        ensembles = () if self.closed_form else ENSEMBLES
        rows = (*self.names, *ensembles, *self._linear_rows)
        if row not in rows:
            raise InputError(f"row: expected one of {', '.join(rows)}, got {row!r}")

    def scorer(self, row: str) -> Scorer:
        """The scorer of one row; raises InputError for an unknown one."""
        self.require_row(row)
        if self.closed_form is not None:
            return self.fitted
        if row == LINEAR:
            return self.linear
        return (
            self.fused(self.embeddings("concatenation"), self.linear)
            if row == FUSED
            else self.embeddings(row)
        )

    def embeddings(self, row: str) -> EmbeddingScorer:
        """The scorer of a member or an ensemble of them; raises InputError for another row."""
        self.require_networks("embeddings")
        if row not in (*self.names, *ENSEMBLES):
            known = ", ".join((*self.names, *ENSEMBLES))
            raise InputError(f"row: expected one that has embeddings, {known}, got {row!r}")
        return make_scorer(row, self.names, self.vectors, self.dataset.graph, self.present)

    def require_networks(self, what: str) -> None:
        """Raise InputError, for ``what`` was asked for, where the run's method is in closed form."""
        if self.closed_form is not None:
            method = self.settings.model.method
            raise InputError(
                f"{what}: expected a run of networks, got one of {method}, which reads no features"
            )

    def fused(self, networks: EmbeddingScorer, linear: Scorer) -> FusedScorer:
        """The sum of both as the run weighs them."""
        assert self.fusion is not None
        return FusedScorer(networks, linear, len(self.members) * self.fusion.weight)


def open_run(
    address: Address,
    dataset: Address | None = None,
    *,
    verify: Verify = "structure",
    mesh: Mesh | None = None,
) -> LoadedRun:
    """Open a finished run and its data set, and check that they belong together.

    Args:
        address: the run directory.
        dataset: where the data set is; None = where it was when the run was trained.
        verify: how to check the data set (:func:`~gnnmr_dist.data.dataset.open_dataset`).
        mesh: None = this process alone, on its GPU if it has one.

    Raises:
        InputError: no run is there, it has not finished, its files are damaged, or the data are other data.
    """
    home = str(address) if storage.is_uri(address) else os.path.abspath(address)
    directory = RunDirectory(home)
    if not storage.exists(home):
        raise bad_input(home, "a run directory", "nothing there")
    model = directory.model()
    manifest = storage.join(home, MODEL, MANIFEST)
    settings = build((manifest, dict(model.info.settings)))
    data = _open_data(model, dataset, verify)
    if data.digest != model.info.data_digest:
        expected = f"the data this run was trained on, digest {model.info.data_digest[:12]}..."
        raise bad_input(data.path, expected, f"{data.digest[:12]}...")
    if tuple(data.modalities) != model.info.modalities:
        raise bad_input(manifest, f"the modalities of {data.path}", "others")
    return LoadedRun(
        directory,
        model,
        settings,
        data,
        members := members_of(data, settings.model),
        mesh or one_process(len(members), local_device(settings.cluster.use_gpu)),
    )


def _open_data(model: Checkpoint, dataset: Address | None, verify: Verify) -> Dataset:
    if dataset is not None:
        return open_dataset(dataset, verify=verify)
    try:
        return open_dataset(model.info.dataset, verify=verify)
    except InputError as error:
        raise InputError(f"{error} (the run was trained on it; --dataset names another place)") from None


AMONG = ("all", "cold")


@dataclass(frozen=True)
class Protocol:
    """What is ranked for whom: the split, the cut-offs, whether validation items are masked besides train's, and
    ``among`` which items: all, or cold, those without a train interaction.
    """

    split: str
    ks: tuple[int, ...]
    mask_valid: bool = False
    among: str = "all"


def check_protocol(dataset: Dataset, protocol: Protocol) -> None:
    """Refuse a protocol that cannot work on this data.

    Raises:
        InputError: an unknown split, a cut-off out of range or given twice, the evaluated items would be masked, or
            none of them is cold.
    """
    if protocol.split not in ("valid", "test"):
        raise InputError(f"split: expected valid or test, got {protocol.split!r}")
    if protocol.mask_valid and protocol.split == "valid":
        raise InputError(
            "mask_valid: expected split test, got valid: it would mask the very items to be found"
        )
    for k in protocol.ks:
        if not 1 <= k <= dataset.num_items:
            raise InputError(
                f"ks: expected cut-offs in 1..{dataset.num_items} (the number of items), got {k}"
            )
    if not protocol.ks or len(set(protocol.ks)) < len(protocol.ks):
        raise InputError(f"ks: expected different cut-offs, got {list(protocol.ks)}")
    if protocol.among not in AMONG:
        raise InputError(f"among: expected {' or '.join(AMONG)}, got {protocol.among!r}")
    if protocol.among == "cold" and evaluated(dataset, protocol).relevant.users.size == 0:
        raise InputError(
            f"among: expected {protocol.split} interactions with items that have none in train, got none"
        )


@dataclass(frozen=True)
class Evaluated:
    """The users of a split with their items, what is masked besides train items, and which items [I] are ranked."""

    relevant: Relevant
    masked: ItemLists | None
    kept: npt.NDArray[np.bool_] | None


def evaluated(dataset: Dataset, protocol: Protocol) -> Evaluated:
    """What a protocol asks for on this data; users without an item among those that are ranked are not evaluated."""
    found = dataset.interactions(protocol.split)
    masked = _lists(dataset, "valid") if protocol.mask_valid else None
    if protocol.among == "all":
        return Evaluated(relevant_items(found, dataset.num_users), masked, None)
    cold = train_counts(dataset.graph) == 0
    of_cold = Interactions(*(part[cold[found.items]] for part in (found.users, found.items)))
    return Evaluated(relevant_items(of_cold, dataset.num_users), masked, cold)


def _lists(dataset: Dataset, split: str) -> ItemLists:
    pairs = dataset.interactions(split)
    return item_lists(pairs.users, pairs.items, dataset.num_users)


def evaluate_model(
    run: LoadedRun, protocol: Protocol, rows: Sequence[str]
) -> Iterator[tuple[str, RowResult]]:
    """Metrics of some of the model's rows, one after the other; every worker must call it together."""
    asked, graph = evaluated(run.dataset, protocol), run.dataset.graph
    for row in rows:
        scorer, masked = run.scorer(row), asked.masked
        yield (
            row,
            evaluate(
                scorer, graph, asked.relevant, protocol.ks, run.mesh, also_masked=masked, kept=asked.kept
            ),
        )


@dataclass(frozen=True)
class EvaluationJob:
    """What a worker needs to know to evaluate; small and plain, so it travels to any node."""

    run: str
    dataset: str
    protocol: Protocol
    rows: tuple[str, ...]


def evaluate_on_worker(job: EvaluationJob, mesh: Mesh) -> Iterator[tuple[str, RowResult]]:
    """:func:`evaluate_model` on one worker of many: it embeds the modalities it hosts and ranks its share of users."""
    yield from evaluate_model(open_run(job.run, job.dataset, mesh=mesh), job.protocol, job.rows)
