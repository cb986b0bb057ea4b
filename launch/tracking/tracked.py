"""The metrics of a run with its trackers behind them: what is written to the directory, they get too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from actors.errors import UsageError
from actors.redaction import redact
from launch.output.board import RunSnapshot
from launch.output.metrics import MetricsWriter, tag
from launch.output.session import Session
from launch.settings.output import TrackingConfig
from launch.tracking import background, prometheus
from launch.tracking.background import Background
from launch.tracking.tracker import RunFacts, Tracker

PROMETHEUS = "Prometheus"


def require_trackers(config: TrackingConfig) -> None:
    """Prepare for what `config` asks for, before Ray starts. Raises UsageError if a package is missing."""
    asked = {
        "wandb": ("tracking.wandb.project", config.wandb.project),
        "mlflow": ("tracking.mlflow.uri", config.mlflow.uri),
    }
    for package, (setting, value) in asked.items():
        if value is not None and not installed(package):
            raise UsageError(
                f"{setting} is {value!r}, and the package {package} is not installed; run `pip install "
                f"'offbeat[{package}]'`, or leave {setting} unset"
            )
    if config.prometheus:
        os.environ[prometheus.COLLECTS] = "1"


def installed(package: str) -> bool:
    """Return whether `package` can be imported; the folder of that name that its runs leave is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def trackers_of(config: TrackingConfig) -> dict[str, Tracker]:
    """Return the trackers that `config` asks for, by their names in messages."""
    trackers: dict[str, Tracker] = {}
    if config.wandb.project is not None:
        from launch.tracking.wandb_tracker import WandbTracker

        trackers["W&B"] = WandbTracker(config.wandb, config.flush_seconds)
    if config.mlflow.uri is not None:
        from launch.tracking.mlflow_tracker import MlflowTracker

        trackers["MLflow"] = MlflowTracker(config.mlflow)
    if prometheus.wanted(config.prometheus):
        trackers[PROMETHEUS] = prometheus.Prometheus()
    return trackers


class TrackedMetrics(MetricsWriter):
    """Metrics of a run that trackers get too, by TensorBoard's names. Raises what `MetricsWriter` raises, no more."""

    def __init__(self, session: Session, resume_from: int, say: Callable[[str], None]) -> None:
        super().__init__(session.directory.path, resume_from, say)
        config, directory = session.config, session.directory
        verb = type(config).__name__.removesuffix("RunConfig").lower() or "train"
        settings = redact(config.model_dump(mode="json"))
        run = RunFacts(config.name, directory.run_id or config.name, directory.path, verb, settings)
        self._seconds = config.tracking.flush_seconds
        self._trackers = [Background(name, tracker, run, say) for name, tracker in trackers_of(config.tracking).items()]
        self._watching = [each for each in self._trackers if each.name == PROMETHEUS]
        self._ended = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write to the directory, then offer the same to the trackers."""
        super().write(step, values)
        self._offer("log", step, {tag(name): float(value) for name, value in values.items()}, time.time())

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write to the directory, then offer the same to the trackers."""
        super().write_text(step, name, text)
        self._offer("text", step, name, text)

    def watch(self, snapshot: RunSnapshot) -> None:
        """Offer what the board shows to who wants it every second."""
        for each in self._watching:
            each.call("log", snapshot.updates, prometheus.figures_of(snapshot), time.time())

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """Offer the summary; `close` then waits for it."""
        if not self._ended:
            self._ended = True
            self._offer("end", status, summary)

    def close(self) -> None:
        """Close the files, and wait a bounded time for the trackers; may be called again."""
        super().close()
        self.end("failed", {})
        trackers, self._trackers, self._watching = self._trackers, [], []
        background.close(trackers, self._seconds)

    def _offer(self, method: str, *arguments: Any) -> None:
        for each in self._trackers:
            each.call(method, *arguments)
