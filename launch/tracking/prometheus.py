"""A run's figures for Prometheus, through the metrics agent that Ray has on each node. Grafana: `grafana.json`.

A figure's name is TensorBoard's, with `_` for `/`, after `offbeat_`; Ray puts `ray_` before it. The labels `run` and
`run_id` distinguish runs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.files import atomic_write
from launch.output.board import RunSnapshot
from launch.tracking.tracker import RunFacts

PREFIX = "offbeat_"
RAY_PREFIX = "ray_"
COLLECTS = "RAY_enable_metrics_collection"
"""Variable with which a Ray that a run starts has its metrics off, unless it is 1."""
TARGETS = "prometheus.json"
"""File in the run's directory for trackers: the address of the agent, as Prometheus reads it with `file_sd_configs`."""
LABELS = ("run", "run_id")
_REFUSED = re.compile(r"\W")


def wanted(setting: bool | None) -> bool:
    """Return whether to export; unset: if Ray has been joined or started, and collects metrics."""
    import ray

    return ray.is_initialized() and os.environ.get(COLLECTS) != "0" if setting is None else setting


def exported(name: str) -> str:
    """Return the name of a figure as Prometheus has it, without what Ray puts before it."""
    return PREFIX + _REFUSED.sub("_", name)


def figures_of(snapshot: RunSnapshot) -> dict[str, float]:
    """Describe a run as it is now: rates are recent averages, seconds and counts are totals so far."""
    alive = snapshot.generators
    return {
        "run/version": snapshot.version,
        "run/update": snapshot.updates,
        "run/total_updates": snapshot.total_updates,
        "run/tokens_per_second": snapshot.tokens_per_second,
        "run/groups_per_second": snapshot.groups_per_second,
        "run/dropped_groups": sum(snapshot.dropped.values()),
        "buffer/groups": snapshot.buffered,
        "buffer/in_flight": snapshot.in_flight,
        "buffer/oldest": max(snapshot.ages, default=0),
        "buffer/max_staleness": snapshot.max_staleness,
        "generators/alive": len(alive),
        "generators/ended": snapshot.ended_generators,
        "generators/running": sum(status.running for status in alive),
        "generators/waiting": sum(status.waiting for status in alive),
        "generators/generating_seconds": sum(status.generating_seconds for status in alive),
        "generators/updating_seconds": sum(status.updating_seconds for status in alive),
        "generators/idle_seconds": sum(status.idle_seconds for status in alive),
        **{f"learner/{state}_seconds": seconds for state, seconds in snapshot.learner_seconds.items()},
    }


class Prometheus:
    """Sets one gauge of Ray for each figure; Ray's agent on this node answers Prometheus with the newest values."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._gauges: dict[str, Any] = {}

    def begin(self, run: RunFacts) -> None:
        """Write the agent's address beside the run. A Ray cluster with a dashboard has such a file of its own."""
        import ray

        self._labels = dict(zip(LABELS, (run.name, run.run_id), strict=True))
        own = ray.get_runtime_context().get_node_id()
        addresses = [
            f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["NodeID"] == own
        ]
        run.own.mkdir(parents=True, exist_ok=True)
        targets = [{"labels": {"job": "ray"}, "targets": addresses}]
        atomic_write(Path(run.own / TARGETS), json.dumps(targets) + "\n")

    def log(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Set the gauges of `values`."""
        for name, value in values.items():
            if (gauge := self._gauges.get(name)) is None:
                gauge = self._gauges[name] = self._gauge(name)
            gauge.set(value)

    def text(self, step: int, name: str, text: str) -> None:
        """Prometheus takes no texts."""

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """The gauges end with this process's Ray."""

    def abandon(self) -> None:
        """Nothing waits for a gauge."""

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        gauge = Gauge(exported(name), description=f"Offbeat: {name}", tag_keys=LABELS)
        return gauge.set_default_tags(self._labels)
