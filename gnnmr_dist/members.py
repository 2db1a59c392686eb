"""The members of an ensemble: which networks there are, and which modalities each of them reads.

GNNMR has one member per modality (``each``). Everything else is the same machinery: IDs alone as a member, several
category fields in one member, or one member that reads everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import scipy.sparse as sp

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.config import ModelSettings
from gnnmr_dist.data.dataset import Dataset, FeatureTable, ModalityInfo
from gnnmr_dist.data.item_matrix import item_matrix, size
from gnnmr_dist.ease import BaselineSkipped, ease_too_large
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.models.inputs import Kind
from gnnmr_dist.presets import KEYWORDS, READS_FEATURES, RESERVED

FIELDS_APART = 4
"""``auto``: up to so many categories and bags are a member each, more of them share one (docs/decisions.md)."""


@dataclass(frozen=True)
class Member:
    """One network: its name in every table and file, and the modalities it reads (none = user and item IDs alone)."""

    name: str
    modalities: tuple[ModalityInfo, ...]

    @property
    def inputs(self) -> tuple[tuple[Kind, int], ...]:
        """Kind and size of each modality it reads."""
        return tuple((info.kind, info.dim) for info in self.modalities)


def members_of(dataset: Dataset, settings: ModelSettings) -> tuple[Member, ...]:
    """The M members that the settings name, in their order; a baseline's only member bears the method's name.

    A method in closed form has one member, which reads nothing, whatever the settings name.

    Raises:
        InputError: an entry names no modality of the data set, two members would have one name, or a member reads
            nothing of a method that needs features.
    """
    if settings.method in CLOSED_FORM:
        return (Member(settings.method, ()),)
    modalities = tuple(dataset.modalities)
    found = [member for entry in settings.members for member in _entry(entry, modalities)]
    if settings.method != "gnnmr" and len(found) == 1:
        found = [Member(settings.method, found[0].modalities)]
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"members: expected different members, got {name!r} twice")
    if settings.method in READS_FEATURES and not all(member.modalities for member in found):
        got = ", ".join(settings.members)
        raise InputError(f"members: expected modalities for method {settings.method}, got {got}")
    return tuple(found)


def refuse_names(dataset: Dataset) -> None:
    """Raise InputError where a modality has a name that would mean something else in settings or results."""
    for name in (info.name for info in dataset.modalities):
        if name in RESERVED or "+" in name:
            expected = f"modality names without + other than {', '.join(RESERVED)}"
            raise bad_input(dataset.path, expected, repr(name))


def _entry(entry: str, modalities: Sequence[ModalityInfo]) -> Iterator[Member]:
    if entry == "auto":
        several = sum(info.kind != "dense" for info in modalities) > FIELDS_APART
        dense = any(info.kind == "dense" for info in modalities)
        for part in (("dense", "fields") if dense else ("fields",)) if several else ("each",):
            yield from _entry(part, modalities)
    elif entry == "id":
        yield Member("id", ())
    elif entry in ("each", "dense"):
        wanted = [info for info in modalities if entry == "each" or info.kind == "dense"]
        yield from (Member(info.name, (info,)) for info in _some(entry, wanted))
    elif entry in ("fields", "all"):
        yield Member(
            entry, _some(entry, [info for info in modalities if entry == "all" or info.kind != "dense"])
        )
    else:
        by_name = {info.name: info for info in modalities}
        for name in entry.split("+"):
            if name not in by_name:
                known = ", ".join((*KEYWORDS, *by_name))
                raise InputError(f"members: expected some of {known} (joined by +), got {entry!r}")
        yield Member(entry, tuple(by_name[name] for name in entry.split("+")))


def _some(entry: str, found: Sequence[ModalityInfo]) -> tuple[ModalityInfo, ...]:
    if not found:
        raise InputError(f"members: expected a data set with modalities for {entry!r}, got none of that kind")
    return tuple(found)


def modalities_of(members: Sequence[Member]) -> tuple[ModalityInfo, ...]:
    """What the members read, each once, in the order in which it first comes."""
    return tuple({info.name: info for member in members for info in member.modalities}.values())


def features_skipped(dataset: Dataset, members: Sequence[Member]) -> BaselineSkipped | None:
    """Why the linear peer reads none of the members' features though it has room itself; None where it reads them."""
    num_columns, num_entries = size(_tables(dataset, members))
    return ease_too_large(dataset.graph, num_columns=num_columns, num_entries=num_entries)


def item_features(dataset: Dataset, members: Sequence[Member]) -> sp.csr_matrix | None:
    """What the members read as one matrix [I, F], for the linear peer; None where that is nothing, or has no room."""
    tables = _tables(dataset, members)
    return item_matrix(tables) if tables and features_skipped(dataset, members) is None else None


def _tables(dataset: Dataset, members: Sequence[Member]) -> list[FeatureTable]:
    return [dataset.features(info.name) for info in modalities_of(members)]
