"""What every table of settings is, and the table of what a run reports and where (config.py has the others)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from gnnmr_dist.errors import holds_password

Trackers = tuple[Literal["tensorboard", "mlflow", "wandb"], ...]


class Section(BaseModel):
    """A table of settings: frozen, and unknown keys are refused."""

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
