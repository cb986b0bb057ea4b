"""W&B without its package: what it is called with, and what is ended if it hangs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.settings.output import WandbConfig
from launch.tracking.tracker import RunFacts
from launch.tracking.wandb_tracker import WandbTracker


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, Any] = {}
        self.code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    run, given = FakeRun(), {}
    fake = SimpleNamespace(
        run=run,
        given=given,
        init=lambda **settings: given.update(settings) or run,
        login=lambda **settings: True,
        Settings=lambda **settings: settings,
        Html=lambda text, data_is_not_path: text,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("interrupted", 130)])
def test_the_run_has_offbeat_s_id_and_may_be_resumed(tmp_path: Path, wandb: Any, status: str, code: int) -> None:
    tracker = WandbTracker(WandbConfig(project="p", entity="team"), 20.0)
    tracker.begin(RunFacts("chat", "0123", tmp_path, "dpo", {"a": {"b": 1}}))
    tracker.log(4, {"loss/train": 0.5}, 0.0)
    tracker.text(4, "samples", "<i>")
    tracker.end(status, {"updates": 4, "reward": {"value": 0.5}, "kl": None})
    given = wandb.given
    assert (given["id"], given["resume"], given["name"], given["job_type"]) == ("0123", "allow", "chat", "dpo")
    assert (given["project"], given["entity"], given["mode"]) == ("p", "team", "online")
    assert (given["dir"], given["config"]) == (tmp_path / "tracking", {"a": {"b": 1}})
    assert given["settings"] == {"console": "off", "silent": True, "finish_timeout": 20.0}
    assert wandb.run.axes == {"update": None, "*": "update"}
    assert wandb.run.rows == [{"update": 4, "loss/train": 0.5}, {"update": 4, "samples": "<pre>&lt;i&gt;</pre>"}]
    assert wandb.run.summary == {"status": status, "summary/updates": 4.0, "summary/reward.value": 0.5}
    assert wandb.run.code == code


def test_without_a_key_the_cause_says_what_to_do(tmp_path: Path, wandb: Any) -> None:
    wandb.login = lambda **settings: False
    with pytest.raises(RuntimeError, match="no key; run `wandb login`, export WANDB_API_KEY, or set tracking"):
        WandbTracker(WandbConfig(project="p"), 20.0).begin(RunFacts("chat", "0123", tmp_path, "train"))
    assert wandb.given == {}


def test_only_this_process_s_own_service_is_ended(tmp_path: Path) -> None:
    shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "wandb-core")
    service = subprocess.Popen([tmp_path / "wandb-core", "60"])
    another = subprocess.Popen(["sleep", "60"])
    try:
        WandbTracker(WandbConfig(project="p"), 20.0).abandon()
        assert service.wait(10.0) != 0
        assert another.poll() is None
    finally:
        another.kill()
        another.wait()
        service.kill()
