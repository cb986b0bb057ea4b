"""A stage before the loop with a tracker: the same figures, summary and run id as `train` gives."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from launch.stages.config import SftRunConfig
from launch.stages.driver import Prepared, StageRun
from launch.tracking import tracked
from learner.tensors.examples import TRAIN, VALIDATION, write_sequences
from tests.fakes.learner import FakeRanks
from tests.fakes.trackers import FakeTracker

EXAMPLES = [((1, 2), (3,))] * 20


def config_of(directory: Path, **settings: Any) -> SftRunConfig:
    return SftRunConfig.model_validate(
        {
            "output": str(directory / "run"),
            "model": {"path": "scratch"},
            "data": {"source": "unused"},
            "training": {"batch_size": 2, "evaluate_every": 4},
            **settings,
        }
    )


def prepare(config: SftRunConfig, directory: Path) -> Prepared:
    (directory / "start").mkdir(exist_ok=True)
    write_sequences(directory / "data" / TRAIN, EXAMPLES)
    write_sequences(directory / "data" / VALIDATION, EXAMPLES[:3])
    return Prepared(directory / "start", 20, 3, [])


def run(config: SftRunConfig) -> int:
    return StageRun(config, prepare, start=lambda *_: contextlib.nullcontext(FakeRanks([2.0, 1.0]))).run()


def test_a_stage_is_tracked_under_its_verb_with_its_held_out_figures(tmp_path, monkeypatch) -> None:
    tracker = FakeTracker()
    monkeypatch.setattr(tracked, "trackers_of", lambda config: {"fake": tracker})
    assert run(config_of(tmp_path)) == 0
    assert (tracker.run.verb, tracker.run.name) == ("sft", "sft")
    logged = [call[1:] for call in tracker.calls if call[0] == "log"]
    assert {step for step, _ in logged} == set(range(1, 11))
    assert any("eval/loss" in values for _, values in logged)
    assert tracker.calls[-1] == ("end", "completed", json.loads((tmp_path / "run" / "summary.json").read_text()))


def test_a_stage_logs_json_lines_if_asked_for(tmp_path, capsys) -> None:
    assert run(config_of(tmp_path, log={"format": "json"})) == 0
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {row["run"] for row in rows} == {"sft"}
    assert any("holds the model" in row["message"] for row in rows)


def test_a_stage_is_refused_before_it_writes_if_a_package_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracked, "find_spec", lambda name: None)
    with pytest.raises(tracked.UsageError, match=r"pip install 'offbeat\[wandb\]'"):
        run(config_of(tmp_path, tracking={"wandb": {"project": "there"}}))
    assert not (tmp_path / "run").exists()
