"""The search space as data: a TOML file of the settings' own shape, with lists and ranges where settings have values.

``learning_rate = [1e-4, 1e-3]`` tries these; ``{ low = 1e-4, high = 1e-2, log = true }`` draws between. Everything is
checked against the settings' own types and limits before anything starts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from gnnmr_dist.config import Settings, build, fields, read_toml
from gnnmr_dist.errors import InputError
from gnnmr_dist.randomness import Purpose, generator

Point = dict[str, Any]
"""One value per swept setting, by the setting's name."""

FIXED = {
    "training.seed": "repeats have seeds of their own (--seeds)",
    "training.epochs": "trials are compared epoch by epoch (--epochs)",
    "training.valid_every": "trials are compared epoch by epoch (--valid-every)",
    "training.checkpoint_every_steps": "it changes no result",
    "training.keep_checkpoints": "it changes no result",
    "evaluation": "trials are compared by one metric",
    "cluster": "it changes no result",
}
"""Settings and sections that a sweep does not vary, and why."""


@dataclass(frozen=True)
class Choice:
    """A setting that takes one of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included: on a log scale, or in steps from ``low``, if told."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool


Domain = Choice | Range


@dataclass(frozen=True)
class Space:
    """The swept settings by name, in the order of the file; ``tables`` is the file's content."""

    source: str
    domains: Mapping[str, Domain]
    tables: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of what is swept: the same for files that differ in comments and order of keys only."""
        return hashlib.sha256(json.dumps(self.tables, sort_keys=True).encode()).hexdigest()


def read_space(path: Path) -> Space:
    """Read and check a space file.

    Raises:
        InputError: one line with the file, the key, what was expected and what was got.
    """
    return parse_space(read_toml(path), str(path))


def parse_space(tables: Mapping[str, Any], source: str) -> Space:
    """Check the content of a space file; raises InputError as :func:`read_space` does."""
    domains: dict[str, Domain] = {}
    for section, table in tables.items():
        if section not in Settings.model_fields or not isinstance(table, dict):
            expected = f"one of the tables {', '.join(Settings.model_fields)}"
            raise _refusal(source, section, expected, repr(table))
        for name, given in table.items():
            key = f"{section}.{name}"
            if name not in fields() or fields()[name][0] != section:
                known = ", ".join(n for n, (s, _) in fields().items() if s == section)
                raise _refusal(source, key, f"one of {known}", repr(name))
            for fixed in (section, key):
                if fixed in FIXED:
                    raise _refusal(source, key, f"a setting that a sweep may vary: {FIXED[fixed]}", name)
            domains[name] = _domain(source, key, given)
    if not domains:
        raise InputError(f"{source}: expected at least one setting to vary, got none")
    return Space(source, domains, tables)


def _refusal(source: str, key: str, expected: str, got: object) -> InputError:
    return InputError(f"{source}, key {key}: expected {expected}, got {got}")


def _domain(source: str, key: str, given: Any) -> Domain:
    if isinstance(given, dict):
        return _range(source, key, given)
    if not isinstance(given, list) or not given:
        raise _refusal(source, key, "a list of values, or a table with low and high", repr(given))
    values = tuple(_value(source, key, each) for each in given)
    if len(set(values)) != len(values):
        raise _refusal(source, key, "different values", repr(given))
    return Choice(values)


def _range(source: str, key: str, given: Mapping[str, Any]) -> Range:
    if not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}:
        raise _refusal(source, key, "low and high, perhaps log or step", f"keys {', '.join(given) or 'none'}")
    kind = fields()[key.split(".")[1]][1].annotation
    if kind not in (int, float):
        raise _refusal(source, key, "a list of values (only numbers have ranges)", "a range")
    low, high = (_value(source, key, given[end]) for end in ("low", "high"))
    log, step = given.get("log", False), given.get("step")
    if not low < high:
        raise _refusal(source, key, "low below high", f"low {low} and high {high}")
    if not isinstance(log, bool):
        raise _refusal(source, key, "log = true or false", repr(log))
    if log and (step is not None or low <= 0):
        raise _refusal(source, key, "a log range from above 0, without step", json.dumps(given))
    numbers = int if kind is int else int | float
    if step is not None and (isinstance(step, bool) or not isinstance(step, numbers) or not step > 0):
        raise _refusal(source, key, f"a step above 0{', a whole number' * (kind is int)}", repr(step))
    return Range(low, high, log, step, kind is int)


def _value(source: str, key: str, given: Any) -> Any:
    """The value as the settings read it; raises InputError when they would not."""
    section, name = key.split(".")
    model: type[BaseModel] = Settings.model_fields[section].annotation  # type: ignore[assignment]
    try:
        return getattr(model.model_validate({name: given}), name)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{source}, key {key}: {reason}, got {given!r}") from None


def grid(space: Space) -> list[Point]:
    """Every combination of the values; the file's last setting changes fastest.

    Raises:
        InputError: a setting has a range.
    """
    values = []
    for name, domain in space.domains.items():
        if isinstance(domain, Range):
            expected = "a list of values for --search grid"
            raise _refusal(space.source, f"{fields()[name][0]}.{name}", expected, "a range")
        values.append(domain.values)
    return [dict(zip(space.domains, point, strict=True)) for point in itertools.product(*values)]


def shuffled(points: Sequence[Point], seed: int) -> list[Point]:
    """The points in an order of the seed's: ASHA compares a trial with those before it, so no value may come last."""
    places = generator(seed, Purpose.SWEEP, 2**33).permutation(len(points))
    return [points[place] for place in places]


def draw(space: Space, seed: int, number: int) -> Point:
    """Random point ``number`` of a sweep: a pure function of seed and number, each setting drawn by itself."""
    random = generator(seed, Purpose.SWEEP, number)
    return {name: _drawn(domain, float(random.random())) for name, domain in space.domains.items()}


def _drawn(domain: Domain, u: float) -> Any:
    """What a uniform number in [0, 1) falls on."""
    if isinstance(domain, Choice):
        return domain.values[int(u * len(domain.values))]
    low, high = domain.low, domain.high
    if domain.step is not None:
        steps = int(np.floor((high - low) / domain.step + 1e-9)) + 1
        value = low + domain.step * int(u * steps)
    elif domain.log:  # whole numbers: each has the log-width from half below to half above
        half = 0.5 if domain.whole else 0.0
        value = math.exp(math.log(low - half) + u * (math.log(high + half) - math.log(low - half)))
        value = min(max(value, low), high)
    elif domain.whole:
        value = low + int(u * (high - low + 1))
    else:
        value = low + u * (high - low)
    return round(value) if domain.whole else float(value)


def nested(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The point's values by section, as in TOML."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        tables.setdefault(fields()[name][0], {})[name] = list(value) if isinstance(value, tuple) else value
    return tables


def described(point: Mapping[str, Any]) -> str:
    """The point in words: ``learning_rate 0.001, distill_weight 0.5``."""
    return ", ".join(f"{name} {shown(value)}" for name, value in point.items())


def shown(value: Any) -> str:
    """A value for people: floats in at most six digits."""
    if isinstance(value, tuple | list):
        return "[" + " ".join(map(shown, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def settings_of(base: Settings, point: Mapping[str, Any], seed: int) -> Settings:
    """The settings of one trial: the base, the point's values, the seed.

    Raises:
        InputError: the values do not go together (as when heads does not divide embedding_dim).
    """
    values = nested(point)
    values.setdefault("training", {})["seed"] = seed
    return build(("base", base.model_dump(mode="json")), (f"point {described(point)}", values))
