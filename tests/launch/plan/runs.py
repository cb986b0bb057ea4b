"""Directories of runs that never were: what the simulation reached, written as a run writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.plan.derive import configured
from launch.plan.model import Generators, Judges, Learner, Model, Times
from launch.plan.simulation import Account, Simulation
from launch.settings.loading import dump_config, load_config
from launch.settings.run import RunConfig

BASE = ("updates=60", "evaluation.prompts=0", "journal.enabled=false", "generators.max_running_prompts=8")


def run_of(directory: Path, *overrides: str, ranks: int = 1, **numbers: float) -> RunConfig:
    """Write the directory of a run with these settings, that was as fast as `model_of` says; return its settings."""
    config = load_config("embedded", [*BASE, *overrides])
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump_config(config))
    account = Simulation(model_of(config, **numbers), seed=7).run()
    (directory / "summary.json").write_text(json.dumps(summary_of(account, config)))
    lines = [{"step": n + 1, "seconds": numbers.get("update", 2.0)} for n in range(config.updates)]
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 1')
    return config


def model_of(
    config: RunConfig, *, group: float = 0.5, update: float = 2.0, batching: float = 4.0, fixed: float = 0.0
) -> Model:
    """A machine's seconds, under the settings of a run. `update`: of 32 prompts, beside the `fixed` ones."""
    model = Model(
        replay=config.replay,
        updates=config.updates,
        generators=Generators(group=Times(group, 0.3), batching=batching, take_seconds=0.5),
        learner=Learner(
            update=Times(fixed + update * config.replay.prompts_per_update / 32),
            publish_seconds=0.25,
            pause_seconds=0.125,
        ),
        judges=Judges(seconds=0.01, driver_seconds=0.001),
    )
    return configured(model, config)


def summary_of(account: Account, config: RunConfig) -> dict[str, Any]:
    """The part of a summary that a plan reads, with one more publication, before the first wait."""
    consumed, versions = sum(account.staleness.values()), account.updates // config.replay.updates_per_publish
    learner, first = dict(account.learner), (versions + 1) / versions
    return {
        "status": "completed",
        "groups_per_second": consumed / account.seconds,
        "staleness": {"histogram": {str(age): number for age, number in account.staleness.items()}},
        "time_budget": {
            "generator": account.generator | {"updating": account.generator["updating"] * first},
            "learner": {
                "training": learner["training"],
                "waiting": learner["waiting"],
                "publishing": learner["publishing"] * first,
                "checkpointing": learner["other"],
                "evaluating": 0.0,
            },
            "judge": {"judging": 0.01 * consumed},
        },
        "judging": {"groups": float(consumed)},
        "ledger": account.ledger,
    }
