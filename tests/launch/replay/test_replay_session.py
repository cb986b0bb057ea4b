"""Whole replays of whole runs, with fakes for Ray's actors and a learner whose weights tell what it was given."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.errors import RunError
from launch import train
from launch.cli import main
from launch.cluster import wiring
from launch.output.journal_files import segments
from launch.settings.run import RunConfig
from learner.backend import checkpoints, manifest
from tests.fakes.generators import FakeGenerator
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner, FakeStats
from tests.launch.output.test_journal import as_before_checksums

FILE = "model.safetensors"


@dataclass
class Stats(FakeStats):
    grad_norm: float = 0.0
    accuracy: float | None = None  # the board shows it, about every second


class Learner(FakeLearner):
    """Its weight is a number that depends on every batch so far, on their order and on the learning rate."""

    def __init__(self, config: RunConfig, break_at: int | None = None) -> None:
        super().__init__(0.0)
        self.weight = torch.ones(1, dtype=torch.float64)
        self.lr = config.learner.optimizer.lr
        self.break_at = break_at

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def update(self, items: Any, measure_step: bool = False) -> Stats:
        await super().update(items, measure_step)
        if len(self.batches) == self.break_at:
            raise RunError("the learner ran out of memory")
        for number, item in enumerate(items, start=1):
            self.weight = self.weight * 0.7 + self.lr * (item.lease_index + 1) / number
        return Stats(loss=float(self.weight), grad_norm=float(self.weight) / 3)

    async def save(self, stage: Path) -> None:
        for part in (checkpoints.ENGINE, checkpoints.MODEL):
            (stage / part).mkdir()
            save_file({"weight": self.weight}, stage / part / FILE)

    async def load(self, checkpoint: Path) -> None:
        self.weight = load_file(checkpoint / checkpoints.ENGINE / FILE)["weight"]

    async def save_pretrained(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        save_file({"weight": self.weight}, directory / FILE)

    async def close(self) -> None: ...


Start = Callable[..., int]


@pytest.fixture
def offbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Trains in `tmp_path`/run: six updates of four prompts, a checkpoint after every second one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(train.SharedMemory, "require", lambda self, nbytes, *, what: None)
    monkeypatch.setattr(wiring, "ray_session", lambda cluster: contextlib.nullcontext())
    monkeypatch.setattr(wiring, "check_resources", lambda config: None)
    monkeypatch.setattr(wiring, "check_stage_resources", lambda learner: None)
    monkeypatch.setattr(wiring, "run_on_all_cores", lambda function, directory, **_: directory.mkdir(exist_ok=True))
    monkeypatch.setattr(wiring, "start_generators", lambda *_, **__: [FakeGenerator("a")])
    monkeypatch.setattr(wiring, "start_judges", lambda *_: [FakeJudge()])
    breaks: list[int | None] = [None]
    monkeypatch.setattr(wiring, "start_learner", lambda config, *_: Learner(config, breaks[0]))

    def start(*, break_at: int | None = None, resume: bool = False, **settings: Any) -> int:
        breaks[0] = break_at
        base: dict[str, Any] = {
            "model": {"path": "world"},
            "output": str(tmp_path / "run"),
            "updates": 6,
            "prompts": {"max_prompt_tokens": 8},
            "sampling": {"completions_per_prompt": 2, "max_new_tokens": 4},
            "replay": {"prompts_per_update": 4},
            "checkpoints": {"every_updates": 2, "keep": 9},
            "evaluation": {"prompts": 0},
        }
        try:
            return train.run_training(RunConfig.model_validate({**base, **settings}), resume=resume)
        finally:
            breaks[0] = None

    return start


def replay(run: Path, *arguments: str, into: str = "replay") -> dict[str, Any]:
    assert main(["replay", str(run), *arguments]) == 0
    return json.loads((run / into / "report.json").read_text())


def test_a_replay_reaches_the_run_s_weights_and_says_so(tmp_path: Path, offbeat: Start, capsys) -> None:
    assert offbeat() == 0
    report = replay(tmp_path / "run")
    assert (report["trained"], report["groups"], report["first_difference"]) == (6, 24, None)
    assert report["weights"] == {
        "recorded": str(tmp_path / "run" / "final"),
        "tensors": 1,
        "different": 0,
        "largest_difference": 0.0,
        "tensor": None,
    }
    assert report["metrics"]["loss"]["recorded"] == report["metrics"]["loss"]["replay"]
    out = " ".join(capsys.readouterr().out.split())
    assert f"weights: bit-identical to {tmp_path}/run/final (1 tensor)" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "replay" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "replay" / "config.yaml").is_file()


def test_a_run_that_failed_and_went_on_is_replayed_as_one(tmp_path: Path, offbeat: Start) -> None:
    with pytest.raises(RunError, match="out of memory"):
        offbeat(break_at=4)
    assert offbeat(resume=True) == 0
    report = replay(tmp_path / "run")
    assert (report["trained"], report["weights"]["different"], report["first_difference"]) == (6, 0, None)


def test_a_failed_run_is_replayed_up_to_the_batch_that_it_failed_on(tmp_path: Path, offbeat: Start) -> None:
    """Its last weights were never written, but the fifth batch can be looked at."""
    with pytest.raises(RunError, match="out of memory"):
        offbeat(break_at=5)
    report = replay(tmp_path / "run")
    assert (report["trained"], report["end"], report["weights"], report["first_difference"]) == (5, 5, None, None)


def test_another_setting_ends_with_other_weights_which_are_told(tmp_path: Path, offbeat: Start, capsys) -> None:
    assert offbeat() == 0
    report = replay(tmp_path / "run", "--set", "learner.optimizer.lr=0.5", "--max-staleness", "0")
    assert report["changed"] == {"learner.optimizer.lr": [1e-6, 0.5]}
    # The first version's groups alone are fresh: the generator is one version behind ever after.
    assert 4 <= report["groups"] == 24 - report["left_out"] < 24
    assert (report["weights"]["different"], report["weights"]["tensor"]) == (1, "weight")
    out = " ".join(capsys.readouterr().out.split())
    assert "learner.optimizer.lr: 1e-06 recorded, 0.5 here" in out
    assert "bit-identical" not in out


def test_a_run_that_went_on_with_more_updates_tells_that_its_parts_differ(tmp_path: Path, offbeat: Start) -> None:
    assert offbeat() == 0
    assert offbeat(updates=8, resume=True) == 0
    report = replay(tmp_path / "run")
    assert (report["end"], report["resumed_with"]) == (8, {"0": ["updates"]})
    later = replay(tmp_path / "run", "--from", "update-0000006", into="replay-2")
    assert (later["first"], later["trained"], later["resumed_with"], later["weights"]["different"]) == (6, 2, {}, 0)


def test_a_journal_without_its_beginning_goes_on_from_a_checkpoint(tmp_path: Path, offbeat: Start) -> None:
    assert offbeat() == 0
    segments(tmp_path / "run" / "journal")[0].remove()
    report = replay(tmp_path / "run")
    assert (report["first"], report["trained"], report["weights"]["different"]) == (2, 4, 0)


def test_an_interrupted_run_is_compared_with_its_checkpoint(tmp_path: Path, offbeat: Start) -> None:
    assert offbeat() == 0
    saved = tmp_path / "run" / "checkpoints" / "update-0000006" / checkpoints.MODEL
    for path in (tmp_path / "run" / "final").iterdir():
        path.unlink()
    (tmp_path / "run" / "final").rmdir()
    weights = replay(tmp_path / "run")["weights"]
    assert (weights["recorded"], weights["different"]) == (str(saved), 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "updates=3"], "--set updates=3: only learner.*, cluster.* and reference.* can be set"),
        (["--max-staleness", "-1"], "Invalid value for '--max-staleness'"),
        (["--from", "update-0000003"], "--from update-0000003: there is no such checkpoint in"),
        (["--output", "{run}/journal"], "journal is not empty; choose another with --output DIR"),
    ],
)
def test_a_wrong_request_ends_with_2_and_writes_nothing(
    tmp_path: Path, offbeat: Start, capsys, arguments: list[str], told: str
) -> None:
    assert offbeat() == 0
    run = tmp_path / "run"
    before = sorted(run.rglob("*"))
    assert main(["replay", str(run), *(each.format(run=run) for each in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_a_run_without_a_journal_is_told_so(tmp_path: Path, offbeat: Start, capsys) -> None:
    assert offbeat(journal={"enabled": False}) == 0
    assert main(["replay", str(tmp_path / "run")]) == 2
    assert "run/journal holds no journal" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["final", "journal", "checkpoints/update-0000002/deepspeed"])
def test_a_damaged_file_is_named_before_anything_is_replayed(
    tmp_path: Path, offbeat: Start, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """Damaged weights of the run were blamed on the replay, and a damaged batch was trained on."""
    assert offbeat() == 0
    run = tmp_path / "run"
    file = min(path for path in (run / part).iterdir() if path.suffix in (".safetensors", ".parquet"))
    content = bytearray(file.read_bytes())
    content[-30] ^= 2
    file.write_bytes(content)
    assert main(["replay", str(run), *(["--from", "update-0000002"] if "checkpoints" in part else [])]) == 2
    assert f"{file.name} has other content" in capsys.readouterr().err
    assert not (run / "replay").exists()


def test_a_replay_s_model_carries_a_manifest_and_an_older_run_is_told_of(
    tmp_path: Path, offbeat: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offbeat() == 0
    as_before_checksums(tmp_path / "run" / "journal")
    assert replay(tmp_path / "run")["weights"]["different"] == 0
    assert "3 parts of the journal without checksums cannot be verified" in capsys.readouterr().err
    assert manifest.check(tmp_path / "run" / "replay" / "final").update == 6
