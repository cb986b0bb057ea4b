"""A short run whose processes are killed and stopped, each kind once, and which must end as if nothing had happened."""

from __future__ import annotations

import random
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

UPDATES = 80


def test_a_run_loses_nothing_when_each_kind_of_its_processes_is_killed(tmp_path: Path, model_dir: Path) -> None:
    """Generators and judge come back by themselves; learner and driver cost a resume each.

    Weights go through the object store, so the generator that comes back must still find them there.
    """
    config = configuration(tmp_path, model_dir, UPDATES)
    settings = yaml.safe_load(config.read_text())
    settings["publication"]["transport"] = "object_store"
    config.write_text(yaml.safe_dump(settings))
    driver = Driver(config, tmp_path / "log")
    kills = [("generator", 15), ("judge", 30), ("learner", 45), ("driver", 60), ("stopped generator", 68)]
    try:
        account = torment(driver, kills, random.Random(0), longest_wait=1.0)
    finally:
        driver.end()
    assert account.kills == {role: 1 for role, _ in kills}
    assert account.starts == 3
    assert account.orphans == 0
    found = findings(tmp_path / "run", UPDATES)
    assert found["violations"] == [], found
