"""MLflow as a tracker. The only file that imports `mlflow`; read against its version 3.17."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.files import atomic_write
from launch.settings.output import MlflowConfig
from launch.settings.yaml_text import leaves
from launch.tracking.tracker import RunFacts, figures_in

RUN_FILE = "mlflow_run"
"""File in the run's directory for trackers: the id of its MLflow run, which MLflow draws."""
RUN_TAG = "offbeat.run_id"
SQLITE = "sqlite:///"
LONGEST_PARAMETER = 6_000  # characters, MLflow's own limit
MOST_PARAMETERS = 100  # in one request, MLflow's own limit
STATUSES = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_REFUSED = re.compile(r"[^\w\-./ ]")
"""Characters that MLflow takes in no name."""


class MlflowTracker:
    """A run in an MLflow experiment. Uses the client alone, without MLflow's run of the process."""

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: Any = None
        self._id = ""

    def begin(self, run: RunFacts) -> None:
        """Open the run: the one that an earlier part made, if the store still has it, else a new one."""
        # Neither reports to its authors nor lines of its own between the run's.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._config.uri, registry_uri=self._config.uri)
        kept = run.own / RUN_FILE
        known = kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""
        found = self._existing(known, run.run_id) if known else None
        if found is None:
            found = client.create_run(
                self._experiment(), tags={RUN_TAG: run.run_id, "offbeat.verb": run.verb}, run_name=run.name
            )
            run.own.mkdir(parents=True, exist_ok=True)
            atomic_write(kept, f"{found.info.run_id}\n")
        else:
            client.update_run(known, status="RUNNING")
        self._id = found.info.run_id
        self._log_parameters(run.config, found.data.params)

    def log(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Log numbers of an update; those of an update made again after a resume stand beside the earlier ones."""
        from mlflow.entities import Metric

        self._client.log_batch(
            self._id, metrics=[Metric(_name(key), value, int(now * 1000), step) for key, value in values.items()]
        )

    def text(self, step: int, name: str, text: str) -> None:
        """Keep a text as an artifact."""
        self._client.log_text(self._id, text, f"{_name(name)}/update-{step:07d}.md")

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """Keep the summary, its figures as metrics too, and end the run."""
        self.log(int(summary.get("updates") or 0), figures_in(summary), time.time())
        self._client.log_text(self._id, json.dumps(summary, indent=2), "summary.json")
        self._client.set_terminated(self._id, STATUSES[status])

    def abandon(self) -> None:
        """Nothing waits for MLflow's client but the thread that calls it."""

    def _existing(self, known: str, run_id: str) -> Any:
        """Return the MLflow run `known` if it is this run's; None if this store has none. Raises for other errors."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.data.tags.get(RUN_TAG) == run_id else None

    def _experiment(self) -> str:
        """Return the experiment's id; make it if it is new. Artifacts of a file's experiment are kept beside it."""
        from mlflow.exceptions import MlflowException

        name, uri = self._config.experiment, self._config.uri or ""
        if (known := self._client.get_experiment_by_name(name)) is not None:
            return str(known.experiment_id)
        beside = Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts"
        try:
            return str(self._client.create_experiment(name, beside.as_uri() if uri.startswith(SQLITE) else None))
        except MlflowException as error:
            # Another run made it meanwhile.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _log_parameters(self, config: Mapping[str, Any], logged: Mapping[str, str]) -> None:
        """Log the settings that the run has not logged yet: MLflow lets none change, so a resume's are the first's."""
        from mlflow.entities import Param

        given = [
            Param(_name(key), str(value)[:LONGEST_PARAMETER])
            for key, value in leaves(config)
            if _name(key) not in logged
        ]
        for start in range(0, len(given), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=given[start : start + MOST_PARAMETERS])


def _name(name: str) -> str:
    return _REFUSED.sub("_", name)
