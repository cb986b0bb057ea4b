"""`offbeat demo`: the embedded world from nothing to a trained policy, in minutes, on two cores without a GPU."""

from __future__ import annotations

from pathlib import Path

from launch.config import RunConfig
from launch.rundir import next_free
from launch.train import run_training


def run_demo(config: RunConfig) -> int:
    """Runs `config` in an output directory of its own (`runs/demo`, `runs/demo-2`, … unless given); the exit code."""
    if config.output is None:
        config = config.model_copy(update={"output": str(next_free(Path("runs") / "demo"))})
    return run_training(config)
