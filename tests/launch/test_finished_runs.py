"""What `--resume` does with a run that has made and evaluated all its updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import train
from launch.output.board import Board
from tests.fakes.generators import FakeGenerator
from tests.launch.sessions import Actors, Learner, config_of, in_place_of_ray, summary_of


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    return in_place_of_ray(monkeypatch)


class Replacing(Learner):
    """Writes the final model again."""

    async def save_pretrained(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)


def again(tmp_path: Path, actors: Actors, **settings: Any) -> Learner:
    """Resume the run, and return the learner that it had."""
    actors.learner, actors.generators = Replacing(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path, **settings), resume=True) == 0
    return actors.learner


def test_a_finished_run_is_shown_again_and_keeps_its_result(
    tmp_path: Path, actors: Actors, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second resume evaluated again: `cannot be told from the start` became `beats it`, and the speed became 0."""
    train.run_training(config_of(tmp_path))
    before, shown = summary_of(tmp_path), capsys.readouterr().err
    assert again(tmp_path, actors).loaded == []
    told = capsys.readouterr().err
    assert summary_of(tmp_path) == before
    assert shown[shown.index("completed:") :] in told
    assert told.endswith("all 6 updates were done before; to go on, raise updates\n")


def test_a_finished_run_goes_on_for_more_updates_and_makes_a_lost_model_again(tmp_path: Path, actors: Actors) -> None:
    train.run_training(config_of(tmp_path))
    assert len(again(tmp_path, actors, updates=8).batches) == 2
    (tmp_path / "run" / "final" / "offbeat-manifest.json").unlink()
    assert again(tmp_path, actors, updates=8).loaded == [tmp_path / "run" / "checkpoints" / "update-0000008"]


def test_a_run_that_was_extended_and_killed_in_its_evaluation_has_not_finished(tmp_path: Path, actors: Actors) -> None:
    """The summary of its first part says `completed`."""
    train.run_training(config_of(tmp_path))
    summary = (tmp_path / "run" / "summary.json").read_text()
    again(tmp_path, actors, updates=8)
    (tmp_path / "run" / "summary.json").write_text(summary)
    assert again(tmp_path, actors, updates=8).loaded
    assert summary_of(tmp_path)["updates"] == 8


def test_a_resume_says_what_it_reads_before_it_reads_it(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are large: their checksums took half a minute of silence."""
    said: list[str] = []
    monkeypatch.setattr(Board, "message", lambda self, text: said.append(text))
    train.run_training(config_of(tmp_path))
    assert not [text for text in said if "checkpoints" in text]
    said.clear()
    again(tmp_path, actors)
    assert said[0] == f"reading the checkpoints of {tmp_path / 'run'}"


@pytest.mark.parametrize("text", ["{", "{}", '{"updates": 6}'])
def test_a_finished_run_whose_summary_cannot_be_shown_is_evaluated_again(
    tmp_path: Path, actors: Actors, text: str
) -> None:
    train.run_training(config_of(tmp_path))
    (tmp_path / "run" / "summary.json").write_text(text)
    assert again(tmp_path, actors).loaded
    assert summary_of(tmp_path)["status"] == "completed"
