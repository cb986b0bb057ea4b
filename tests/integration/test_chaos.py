"""A short run whose processes are killed and stopped, each kind once, and which must end as if nothing had happened."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks.chaos import Driver, configuration, findings, torment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("own"),
]

Kills = list[tuple[str, int]]
"""Roles, and the updates before each is killed."""
IN_PLACE: Kills = [("judge", 8), ("generator", 16)]
ALL: Kills = [("generator", 15), ("judge", 30), ("learner", 45), ("driver", 60), ("stopped generator", 68)]


@pytest.mark.parametrize(
    ("kills", "updates", "starts"), [(IN_PLACE, 28, 1), pytest.param(ALL, 80, 3, marks=pytest.mark.long)]
)
def test_a_run_loses_nothing_when_each_kind_of_its_processes_is_killed(
    kills: Kills, updates: int, starts: int, tmp_path: Path, model_dir: Path
) -> None:
    """Generators and judge come back by themselves; learner and driver cost a resume each.

    Weights go through the object store, so the generator that comes back must still find them there.
    """
    config = configuration(tmp_path, model_dir, updates)
    settings = yaml.safe_load(config.read_text())
    settings["publication"]["transport"] = "object_store"
    config.write_text(yaml.safe_dump(settings))
    driver = Driver(config, tmp_path / "log")
    try:
        account = torment(driver, kills, random.Random(0), longest_wait=1.0)
    finally:
        driver.end()
    assert account.kills == Counter(role for role, _ in kills)
    assert account.starts == starts
    assert account.orphans == 0
    found = findings(tmp_path / "run", updates)
    assert found["violations"] == [], found
