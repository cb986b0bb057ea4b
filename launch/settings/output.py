"""Settings of a run's files and messages: samples, journal, trackers, its log. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from actors.settings import Settings


class SamplesConfig(Settings):
    """Completions for people to read: the best and the worst answer to a prompt, now and then."""

    every_updates: int = Field(
        default=20,
        ge=0,
        description="optimizer steps between samples in `samples.jsonl`, TensorBoard and the log; the first update has "
        "one too; 0: none",
    )
    log: bool = Field(default=True, description="show samples in the log as well; files have them in any case")
    max_characters: int = Field(default=160, ge=20, description="of a prompt or an answer in the log; files have all")


class JournalConfig(Settings):
    """The record of every group trained on; `offbeat replay` trains on it again."""

    enabled: bool = Field(default=True, description="write the journal; without it a run cannot be replayed")
    updates_per_file: int = Field(
        default=50, ge=1, description="optimizer steps per file; a checkpoint also closes the current file"
    )
    max_mib: int = Field(default=2048, ge=1, description="size of all files (MiB); beyond it the oldest are removed")


class WandbConfig(Settings):
    """Weights & Biases; needs `pip install 'offbeat[wandb]'`."""

    project: str | None = Field(default=None, description="project that gets the run; unset: no W&B")
    entity: str | None = Field(default=None, description="user or team of the project; unset: the account's default")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: write to the run's directory alone, for `wandb sync` later"
    )


class MlflowConfig(Settings):
    """MLflow; needs `pip install 'offbeat[mlflow]'`."""

    uri: str | None = Field(
        default=None, description="http://HOST:PORT of a server, or sqlite:///PATH of a file; unset: no MLflow"
    )
    experiment: str = Field(default="offbeat", min_length=1, description="experiment that gets the run")

    @field_validator("uri")
    @classmethod
    def _without_a_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError(
                "given an address with a password, which would be saved with the run; leave it out, and export "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class TrackingConfig(Settings):
    """Trackers that get a run's figures beside its directory. None of them can end or slow a run."""

    wandb: WandbConfig = Field(default_factory=WandbConfig)
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig)
    prometheus: bool | None = Field(
        default=None,
        description="export figures through Ray's metrics agent; unset: if a cluster is joined; true: also by a Ray "
        "that the run starts, whose raylet then grows by about a MiB in ten minutes",
    )
    flush_seconds: float = Field(
        default=30.0, ge=0.0, description="longest wait at the end for trackers that have not taken everything"
    )


class LogConfig(Settings):
    """The lines that a run prints."""

    format: Literal["text", "json"] = Field(
        default="text", description="json: one object per line with time, level, run, role, version and message"
    )
