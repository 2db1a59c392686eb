"""The plan of a study: a TOML file of sets and parts becomes a list of jobs, the most valuable first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.config import Settings, build, fields, read_toml
from gnnmr_dist.errors import InputError
from gnnmr_dist.presets import METHODS

PARTS = ("tables", "mutual", "tuned", "lambda", "dimension", "cold", "negatives", "missing", "protocol")
"""Parts that the report knows; Figure 5 and users by activity come from the runs of ``tables``."""

REFERENCE = "gnnmr"
"""The method that all others are compared with."""

COLD = "cold-items"
SPLITS = ("random", "user-time", "global-time", COLD)
"""Variants that split a set's interactions anew; ``own`` is the recipe's split, ``missing-N`` drops N % of the rows."""

_SET = {"recipe", "synthetic", "seconds", "networks", "published", "settings"}
_PART = {"name", "priority", "sets", "variants", "methods", "seeds", "values"}
_CASE = {"set", "column", "funds", "least", "truth", "k"}


@dataclass(frozen=True)
class DataSet:
    """A data set of the study: from a recipe of benchmarks/datasets, or planted (arguments of synthetic_dataset)."""

    name: str
    recipe: str | None
    synthetic: Mapping[str, Any]
    seconds: float
    networks: int
    published: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One training and its evaluation on test; ``values`` are the settings in which it differs from its method."""

    set: str
    variant: str
    method: str
    seed: int
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def group(self) -> str:
        """All but the seed, as a path."""
        changed = "".join(f"/{name}-{_text(value)}" for name, value in self.values)
        return f"{self.set}/{self.variant}/{self.method}{changed}"

    @property
    def name(self) -> str:
        """The job's directory below OUTPUT/jobs."""
        return f"{self.group}/seed-{self.seed}"

    @property
    def plain(self) -> bool:
        """Whether it is the method as it comes."""
        return not self.values


@dataclass(frozen=True)
class Part:
    """A part of the report and the jobs it reads, in the plan's order."""

    name: str
    priority: float
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Plan:
    """Sets, parts, and the settings that all jobs share."""

    sets: Mapping[str, DataSet]
    parts: tuple[Part, ...]
    defaults: Mapping[str, Any]
    case: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Part:
        """One part, of all tables of that name; without jobs where the plan has none."""
        found = [part for part in self.parts if part.name == name]
        jobs = dict.fromkeys(job for part in found for job in part.jobs)
        return Part(name, min((part.priority for part in found), default=0.0), tuple(jobs))

    def ranked(self) -> list[Job]:
        """Every job once, the most valuable first: by priority plus seed, then in the plan's order."""
        rank: dict[Job, float] = {}
        for part in self.parts:
            for job in part.jobs:
                rank[job] = min(rank.get(job, float("inf")), part.priority + job.seed)
        return sorted(rank, key=lambda job: rank[job])

    def given(self, job: Job) -> dict[str, Any]:
        """The job's settings by name that differ from the package's defaults, in the order they are told to train."""
        own = {"method": job.method, "seed": job.seed}
        return {**own, **self.defaults, **self.sets[job.set].settings, **dict(job.values)}

    def settings(self, job: Job) -> Settings:
        """All settings of a job; raises InputError for one out of range."""
        return _settings(self.given(job), job.name)

    def guess(self, job: Job) -> float:
        """Seconds a job may take, before anything was measured."""
        if job.method in CLOSED_FORM:
            return 10.0
        settings, seconds = self.settings(job), self.sets[job.set].seconds
        share = 1.0 if settings.model.members in (("auto",), ("each",)) else 1 / self.sets[job.set].networks
        wide = max(settings.model.embedding_dim / 64, 0.5) ** 0.8
        return 10.0 + settings.training.epochs * seconds * share * wide


def read_plan(
    file: Path, *, sets: Sequence[str] = (), only: Sequence[str] = (), seeds: int | None = None
) -> Plan:
    """Read a plan; ``sets``, ``only`` (parts) and ``seeds`` (at most) leave a smaller one.

    Raises:
        InputError: an unknown key, set, part, method, variant or setting, or a value out of range.
    """
    raw, where = read_toml(file), str(file)
    _known(where, raw, {"defaults", "sets", "part", "case"})
    found = {name: _set(f"{where}, sets.{name}", name, table) for name, table in raw.get("sets", {}).items()}
    _members(f"{where}: --sets", sets, list(found))
    defaults = dict(raw.get("defaults", {}))
    _members(f"{where}: --only", only, PARTS)
    kept = [name for name in found if not sets or name in sets]
    parts = []
    for table in raw.get("part", []):
        part = _part(where, table, found, defaults)
        jobs = [job for job in part.jobs if job.set in kept and (seeds is None or job.seed < seeds)]
        if not only or part.name in only:
            parts.append(Part(part.name, part.priority, tuple(jobs)))
    case = dict(raw.get("case", {}))
    _known(f"{where}, case", case, _CASE)
    plan = Plan({name: found[name] for name in kept}, tuple(parts), defaults, case)
    for job in plan.ranked():
        plan.settings(job)
    return plan


def share_missing(variant: str) -> float | None:
    """The share of rows that ``missing-N`` drops, None for another variant."""
    number = variant.removeprefix("missing-")
    return int(number) / 100 if number != variant and number.isdigit() and 0 < int(number) < 100 else None


def _set(where: str, name: str, table: Mapping[str, Any]) -> DataSet:
    _known(where, table, _SET)
    if ("recipe" in table) == ("synthetic" in table):
        raise InputError(f"{where}: expected either recipe or synthetic")
    return DataSet(
        name,
        table.get("recipe"),
        table.get("synthetic", {}),
        float(table.get("seconds", 1.0)),
        int(table.get("networks", 3)),
        table.get("published"),
        table.get("settings", {}),
    )


def _part(
    where: str, table: Mapping[str, Any], sets: Mapping[str, DataSet], defaults: Mapping[str, Any]
) -> Part:
    where = f"{where}, part {table.get('name')!r}"
    _known(where, table, _PART)
    _members(f"{where}, name", [str(table.get("name"))], PARTS)
    _members(f"{where}, sets", table.get("sets", []), list(sets))
    for variant in table.get("variants", []):
        if variant != "own" and variant not in SPLITS and share_missing(variant) is None:
            known = f"own, {', '.join(SPLITS)} or missing-N"
            raise InputError(f"{where}, variants: expected {known}, got {variant!r}")
    jobs = dict.fromkeys(_jobs(where, table, sets, defaults))
    return Part(table["name"], float(table.get("priority", 1.0)), tuple(jobs))


def _jobs(
    where: str, table: Mapping[str, Any], sets: Mapping[str, DataSet], defaults: Mapping[str, Any]
) -> Iterator[Job]:
    methods = [m for name in table.get("methods", ["all"]) for m in (METHODS if name == "all" else [name])]
    _members(f"{where}, methods", methods, list(METHODS))
    names, columns = list(table.get("values", {})), list(table.get("values", {}).values())
    for seed, name, variant, method in itertools.product(
        range(int(table.get("seeds", 1))), table.get("sets", []), table.get("variants", ["own"]), methods
    ):
        if method in CLOSED_FORM and (seed > 0 or share_missing(variant) is not None):
            continue  # no seed and no feature changes anything
        base = {"method": method, **defaults, **sets[name].settings}
        for chosen in itertools.product(*columns):
            changed = _changes(where, base, dict(zip(names, chosen, strict=True)))
            if changed and method != REFERENCE:
                continue  # values are GNNMR's: the others run as they come
            yield Job(name, variant, method, seed, changed)


def _changes(where: str, base: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The values that differ from what the method has anyway, so that equal jobs have equal names."""
    usual = _settings(base, where)
    changed = []
    for name, value in values.items():
        if name not in fields():
            raise InputError(f"{where}, values: expected settings, got {name!r}")
        if value != "default" and value != getattr(getattr(usual, fields()[name][0]), name):
            changed.append((name, tuple(value) if isinstance(value, list) else value))
    return tuple(changed)


def _settings(given: Mapping[str, Any], where: str) -> Settings:
    nested: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name not in fields():
            raise InputError(f"{where}: expected settings of train, got {name!r}")
        nested.setdefault(fields()[name][0], {})[name] = value
    return build((where, nested))


def _known(where: str, table: Mapping[str, Any], keys: set[str]) -> None:
    _members(where, list(table), sorted(keys))


def _members(where: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{where}: expected some of {', '.join(known)}, got {name!r}")


def _text(value: Any) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    return "-".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
