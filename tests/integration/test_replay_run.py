"""`offbeat replay` on real engines: the learner's weights to the bit, from a run's journal alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.output.journal_reader import JournalReader
from tests.integration.runs import finish, small_run, start, wait_for_updates

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(400)]

UPDATES = 10
GAMES = {"learner.loss.kind": "nash_pg"}
DRAWN = {
    "learner.loss.opponent.kind": "mixture",
    "learner.loss.opponent.beta": "0.25",
    "learner.loss.opponent.completions_per_prompt": "2",
}


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    return small_run(tmp_path, model_dir, updates=UPDATES, evaluation={"exact_every_updates": 5})


def replayed(run: Path, *arguments: str, into: str = "replay") -> dict[str, Any]:
    """The report of `offbeat replay RUN ARGUMENTS`."""
    assert main(["replay", str(run), *arguments]) == 0
    return json.loads((run / into / "report.json").read_text())


def assert_same(report: dict[str, Any], run: Path) -> None:
    weights = report["weights"]
    assert weights["recorded"] == str(run / "final")
    assert weights["tensors"] > 10
    assert (weights["different"], weights["largest_difference"]) == (0, 0.0), weights["tensor"]
    assert report["first_difference"] is None
    assert (report["trained"], report["groups"], report["left_out"]) == (UPDATES, 8 * UPDATES, 0)
    assert (report["changed"], report["resumed_with"]) == ({}, {})
    exact = report["exact"]
    assert exact["exploitability"]["recorded"] == exact["exploitability"]["replay"] > 0.0


@pytest.mark.parametrize(
    ("seed", "settings"), [(0, {}), (0, GAMES), (1, GAMES | DRAWN)], ids=["dpo", "nash_pg", "nash_pg against a mixture"]
)
def test_a_replay_reaches_the_bits_of_the_run(config: Path, seed: int, settings: dict[str, str]) -> None:
    """With games the run measures steps, which the replay does not: measuring must leave no trace."""
    given = [f"{key}={value}" for key, value in settings.items()]
    assert main(["train", str(config), f"seed={seed}", f"learner.seed={seed}", *given]) == 0
    run = config.parent / "run"
    assert_same(replayed(run), run)
    if settings:
        return
    what_if = replayed(run, "--loss", "ipo", "--max-staleness", "0", "--set", "learner.loss.beta=0.5", into="replay-2")
    assert what_if["changed"] == {"learner.loss.kind": ["dpo", "ipo"], "learner.loss.beta": [0.1, 0.5]}
    fresh = [age for row in JournalReader(run / "journal").rows for age in row.staleness].count(0)
    assert (what_if["groups"], what_if["left_out"]) == (fresh, 8 * UPDATES - fresh)
    assert 8 <= fresh < 8 * UPDATES
    assert what_if["weights"]["different"] == what_if["weights"]["tensors"]
    assert what_if["weights"]["largest_difference"] > 1e-5
    assert what_if["exact"]["exploitability"]["recorded"] != what_if["exact"]["exploitability"]["replay"]


@pytest.mark.usefixtures("own")
def test_a_run_that_was_killed_and_resumed_is_replayed_as_one(config: Path) -> None:
    """Killed between two checkpoints: what the journal had of the updates after the first is not in it twice."""
    run, arguments = config.parent / "run", ("train", str(config), "seed=1", "learner.seed=1", "evaluation.prompts=0")
    process = start(*arguments)
    wait_for_updates(process, run, 6)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    finish(start(*arguments, "--resume"))
    assert [row.update for row in JournalReader(run / "journal").rows] == list(range(UPDATES))
    assert_same(replayed(run), run)
    later = replayed(run, "--from", "update-0000008", into="replay-2")
    assert (later["first"], later["trained"], later["weights"]["different"]) == (8, 2, 0)
