"""What all tables of settings (config.py) share, and those that say where a run runs and what it reports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gnnmr_dist.errors import holds_password

Trackers = tuple[Literal["tensorboard", "mlflow", "wandb"], ...]


class Section(BaseModel):
    """Frozen; an unknown key is refused, and so is a truth value where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.model_fields[str(info.field_name)].annotation is not bool:
            parts = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(part, bool) for part in parts):  # pydantic would read true as 1
                raise ValueError("a truth value stands where none belongs")
        return value


class ReportingSettings(Section):
    """Who is told how a run goes, beside metrics.jsonl; none of these changes a result."""

    trackers: Trackers = Field(
        (), description="where metrics also go: tensorboard, mlflow, wandb, or none (docs/observability.md)"
    )
    report_every_steps: int = Field(
        50,
        ge=1,
        description="steps over which losses, samples per second and exchange are averaged (assumed)",
    )
    experiment: str = Field("gnnmr", min_length=1, description="MLflow's experiment, W&B's project")
    mlflow_address: str = Field(
        "", description="MLflow's tracking URI; empty = MLFLOW_TRACKING_URI, or MLflow's own default"
    )
    wandb_offline: bool = Field(
        False, description="W&B writes into the run directory and sends nothing (`wandb sync` does, later)"
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return () if isinstance(value, list | tuple) and tuple(value) == ("none",) else value

    @field_validator("mlflow_address")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        if holds_password(value):
            raise ValueError(
                "no password belongs here: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value

    @field_validator("trackers")
    @classmethod
    def _once(cls, value: Trackers) -> Trackers:
        if len(set(value)) != len(value):
            raise ValueError("each tracker once")
        return value


class ClusterSettings(Section):
    """Where it runs; none of these changes a result."""

    num_workers: int = Field(0, ge=0, description="W Ray Train workers; 0 = this process, without Ray")
    min_workers: int = Field(
        0,
        ge=0,
        description="the run goes on with as few workers as this where nodes are lost, and grows back to num_workers "
        "where they return; 0 = always num_workers",
    )
    resize_seconds: float = Field(
        60.0, gt=0, description="with min_workers: how often to look whether more workers would fit"
    )
    modality_groups: int = Field(0, ge=0, description="G; 0 = the largest divisor of W not above M")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs Ray reserves for each worker")
    use_gpu: Literal["auto", "always", "never"] = Field(
        "auto",
        description="a GPU per worker and NCCL instead of gloo; auto = where every worker can have one",
    )
    prefetch: Literal["auto", "thread", "exchange"] = Field(
        "auto",
        description="when a worker samples its next steps: in a thread, or while scores travel (auto: with one CPU)",
    )
    share_memory: bool = Field(
        True,
        description="workers of one machine exchange through memory; no = through sockets, as between machines",
    )
    id_tables: Literal["memory", "mapped"] = Field(
        "memory",
        description="where ID tables, their optimizer and all nodes' embeddings lie: in memory or in mapped files",
    )
    scratch: str = Field(
        "", description="directory of every worker's mapped files; empty = the system's for temporary files"
    )
    max_failures: int = Field(
        3, ge=0, description="worker losses survived by restarting from the last checkpoint"
    )
    timeout_seconds: float = Field(
        300.0, gt=0, description="longest wait in a collective before the run fails"
    )

    @model_validator(mode="after")
    def _fits_any_number(self) -> ClusterSettings:
        if 0 < self.num_workers < self.min_workers:
            raise ValueError(
                f"min_workers ({self.min_workers}) must not be above num_workers ({self.num_workers})"
            )
        if self.elastic and self.modality_groups > 1:
            raise ValueError(
                f"min_workers needs modality_groups 0 or 1, which fit any number of workers, "
                f"got {self.modality_groups}"
            )
        return self

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a run goes on."""
        return 0 < self.min_workers < self.num_workers
