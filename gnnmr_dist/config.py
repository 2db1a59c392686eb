"""Settings: frozen, typed, nested; an unknown key or a value out of range is one line and exit code 2.

Read from TOML (one table per section) and from the command line (every field is ``--kebab-case``), in this
order: defaults, preset, TOML, command line. Each field says where its value comes from: **paper**,
**measured** (docs/decisions.md has the figures), **sketched** (better in small full-graph trials before this code was
written, mostly one seed: a lead, not a proof) or **assumed**.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gnnmr_dist.errors import InputError
from gnnmr_dist.presets import method_values
from gnnmr_dist.sections import ClusterSettings, ReportingSettings, Section

_Trained = Literal["gnnmr", "gat", "lightgcn", "bpr-mf", "vbpr", "mmgcn", "a2cmhne", "pmgt"]


class ModelSettings(Section):
    """What is trained: the members of the ensemble, which share these settings."""

    method: Literal[_Trained, "popularity", "item-knn", "ease"] = Field(
        "gnnmr",
        description="GNNMR or a baseline: settings to start from, below every other source (docs/methods.md)",
    )
    members: tuple[str, ...] = Field(
        ("auto",),
        min_length=1,
        description="what the networks read: auto (each, but more than 4 categories and bags in one), each (a modality "
        "each), dense (a dense one each), fields (all categories and bags together), all (one reads everything), "
        "id (no features), or names joined by +",
    )
    as_published: bool = Field(
        False,
        description="with method mmgcn: preference and ID tables are never trained, a fault of the code "
        "that MMRec carries",
    )
    linear_peer: bool = Field(
        True,
        description="after training, EASE with the items' features joins the ensemble (row fused), weighted as "
        "validation prefers; left out where its matrix needs more than 4 GiB (measured on validation: better on every "
        "set)",
    )
    encoder: Literal["gat", "gatv2", "gcn", "sage", "lightgcn"] = Field(
        "gat", description="graph network of every modality (the method is model-agnostic: paper, footnote 2)"
    )
    embedding_dim: int = Field(
        64, ge=1, le=8192, description="d, size of user and item embeddings (paper: 128)"
    )
    heads: int = Field(1, ge=1, le=64, description="attention heads; must divide embedding_dim (assumed)")
    layer_combination: Literal["mean", "last", "concat"] = Field(
        "mean", description="how layers 0..L become one embedding (sketched: mean; paper: last)"
    )
    self_loops: bool = Field(True, description="every node also attends to itself (sketched; paper: no)")
    degree_scaling: bool = Field(
        True,
        description="scale attention by sqrt(deg v / deg w), keeping what softmax forgets (sketched; paper: no)",
    )
    identity_init: bool = Field(
        True, description="weight matrices start as the identity (sketched; paper: no)"
    )
    activation: Literal["none", "elu", "leaky_relu", "relu"] = Field(
        "none", description="between layers and after the last (sketched: none; paper: leaky_relu)"
    )
    negative_slope: float = Field(0.2, ge=0, le=1, description="of LeakyReLU in attention (GAT's own 0.2)")
    score: Literal["cosine", "dot"] = Field(
        "cosine", description="user-item score (sketched: cosine; paper: dot)"
    )
    temperature: float = Field(
        0.15, gt=0, description="scores are divided by it in the losses (sketched; paper: 1)"
    )
    item_id: Literal["none", "missing", "all"] = Field(
        "all",
        description="items that also have a trained ID vector beside their features (sketched; paper: none)",
    )


class LossSettings(Section):
    """Truth and peers."""

    supervised: Literal["softmax", "bpr"] = Field(
        "softmax", description="sampled softmax over shared candidates, or BPR with one negative (paper: bpr)"
    )
    num_candidates: int = Field(256, ge=0, description="C, items all rows of a step share (sketched)")
    negatives: Literal["all", "trained"] = Field(
        "all",
        description="items drawn as negatives and candidates: all, or those with a train interaction (measured: cold "
        "items are found several times as often; for others nothing sure)",
    )
    distill_weight: float = Field(
        0.5, ge=0, description="lambda of Eq. 9, weight of mutual learning (paper: .5 to 1)"
    )
    distill_temperature: float = Field(
        1.0, gt=0, description="softens both sides of the KL further (assumed)"
    )
    teacher: Literal["scores", "distributions", "bernoulli"] = Field(
        "scores",
        description="softmax of the peers' mean score (Eq. 8), mean of their softmaxes, or per-pair KL",
    )
    mask_missing: bool = Field(
        True,
        description="an item's missing modality is left out of its teacher (measured: neutral to slightly better)",
    )


class SamplingSettings(Section):
    """Neighbour sampling."""

    num_neighbors: tuple[int, ...] = Field(
        (20, 20),
        max_length=8,
        description="fan-out per hop, -1 = all; its length is the number of layers",
    )
    exclude_supervision: bool = Field(
        True, description="the batch's own edges and their reverses send no messages (sketched)"
    )
    sampler: Literal["builtin", "pyg"] = Field(
        "builtin",
        description="pyg needs pyg-lib or torch-sparse and is not independent of the number of replicas",
    )

    @field_validator("num_neighbors")
    @classmethod
    def _fan_out(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for k in value:
            if k != -1 and k < 1:
                raise ValueError(f"a fan-out is -1 or at least 1, not {k}")
        return value


class PretrainingSettings(Section):
    """The stage before training, of methods that have one (pmgt)."""

    pretrain_epochs: int = Field(30, ge=0, description="passes over the items; 0 = none (assumed)")
    pretrain_learning_rate: float = Field(1e-3, gt=0, description="of its Adam (assumed)")
    freeze_items: bool = Field(
        False,
        description="item vectors stay as pre-trained, only a linear map after them learns (assumed: no)",
    )


class TrainingSettings(Section):
    """Optimisation, selection and checkpoints."""

    seed: int = Field(0, ge=0, lt=2**63, description="the only source of randomness")
    epochs: int = Field(100, ge=1, description="at most so many passes over the train interactions")
    global_batch_size: int = Field(
        1024, ge=1, description="B, positives per step over all workers (paper: 256)"
    )
    learning_rate: float = Field(2e-3, gt=0, description="of Adam (paper's grid: 1e-5 to 5e-3)")
    weight_decay: float = Field(0.0, ge=0, description="L2, added to the gradient (paper: none)")
    grad_clip: float = Field(0.0, ge=0, description="largest gradient norm per modality; 0 = no clipping")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32",
        description="bfloat16 = autocast of the encoder; float64 = equal rankings for any number of replicas too",
    )
    exchange: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="how scores travel to peers; bfloat16 halves the bytes and rounds what peers see",
    )
    valid_every: int = Field(2, ge=1, description="epochs between validations")
    patience: int = Field(5, ge=1, description="validations without a better value before training stops")
    checkpoint_every_steps: int = Field(0, ge=0, description="also within an epoch; 0 = only at epochs' ends")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints stay")


class EvaluationSettings(Section):
    """Full ranking."""

    ks: tuple[int, ...] = Field((10, 20, 50), min_length=1, description="cut-offs K")
    select_metric: str = Field(
        "Recall@20", description="on validation, of select_row; decides early stopping"
    )
    mask_missing_in_ensemble: bool = Field(
        False, description="an item's missing modality is left out of the concatenation too (measured: worse)"
    )
    select_row: str = Field(
        "concatenation", description="ensemble or modality whose validation metric decides"
    )

    @field_validator("ks")
    @classmethod
    def _cut_offs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) != len(value):
            raise ValueError("cut-offs are different whole numbers from 1")
        return value


class Settings(Section):
    """All settings of a training run."""

    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    sampling: SamplingSettings = SamplingSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()
    reporting: ReportingSettings = ReportingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.model.embedding_dim % self.model.heads:
            raise ValueError(
                f"heads ({self.model.heads}) must divide embedding_dim ({self.model.embedding_dim})"
            )
        if self.loss.supervised == "softmax" and self.loss.num_candidates < 1:
            raise ValueError("supervised = softmax needs num_candidates of at least 1")
        if self.model.as_published and self.model.method != "mmgcn":
            raise ValueError(f"as_published needs method mmgcn, got {self.model.method}")
        name, _, k = self.evaluation.select_metric.partition("@")
        if name not in ("Recall", "NDCG", "Precision", "HitRate", "MRR") or k not in map(
            str, self.evaluation.ks
        ):
            raise ValueError(
                f"select_metric must be Recall, NDCG, Precision, HitRate or MRR at one of {self.evaluation.ks}, "
                f"got {self.evaluation.select_metric}"
            )
        return self


def fields() -> dict[str, tuple[str, Any]]:
    """Every setting as name -> (section, pydantic field); names are unique over sections."""
    table: dict[str, tuple[str, Any]] = {}
    for section, outer in Settings.model_fields.items():
        inner: type[BaseModel] = outer.annotation  # type: ignore[assignment]
        for name, field in inner.model_fields.items():
            if name in table:
                raise AssertionError(f"setting {name} stands in two sections")
            table[name] = (section, field)
    return table


def build(*layers: tuple[str, dict[str, Any]]) -> Settings:
    """Settings from layers of (origin, nested values), later ones winning.

    Raises:
        InputError: an unknown key or a value out of range, naming its origin and key.
    """
    method = method_values([values for _, values in layers])
    merged: dict[str, dict[str, Any]] = {section: dict(table) for section, table in method.items()}
    origin: dict[tuple[str, ...], str] = {}
    for source, values in layers:
        for section, table in values.items():
            if section not in Settings.model_fields or not isinstance(table, dict):
                known = ", ".join(Settings.model_fields)
                raise InputError(
                    f"{source}, key {section}: expected one of the tables {known}, got {table!r}"
                )
            for key, value in table.items():
                merged.setdefault(section, {})[key] = value
                origin[(section, key)] = source
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _one_line(error, origin, layers[-1][0] if layers else "settings") from None


def _one_line(error: ValidationError, origin: dict[tuple[str, ...], str], fallback: str) -> InputError:
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    source = origin.get(path[:2], fallback)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        names = ", ".join(name for name, (section, _) in fields().items() if section == path[0])
        message = f"unknown key, expected one of {names}"
    got = f", got {first['input']!r}" if path and first["type"] != "extra_forbidden" else ""
    return InputError(f"{source}{', key ' + '.'.join(path) if path else ''}: {message}{got}")


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
    """The nested values of a TOML file; raises InputError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a settings file, got {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected TOML, got {error}") from None


def to_toml(settings: Settings) -> str:
    """The settings as TOML that :func:`read_toml` reads back to equal settings."""
    lines: list[str] = []
    for section, table in settings.model_dump(mode="json").items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
