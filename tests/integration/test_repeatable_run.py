"""Runs that end with the same bits again: killed and resumed on a fixed schedule, and replayed from their journals.

Two runs per loss serve all of it, one left alone and one killed.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from launch.output.journal_reader import JournalReader
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

UPDATES = 10
EVERY = 3
"""Updates between checkpoints."""
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "nash_pg": {"opponent": {"kind": "mixture", "beta": 0.25, "completions_per_prompt": 2}},
}
SEEDS = {"dpo": 0, "nash_pg": 1}
TWICE = ("nash_pg",)
"""Losses whose run is ended a second time."""
EACH = ["dpo", pytest.param("nash_pg", marks=pytest.mark.long)]
AVERAGES: dict[str, Any] = {"anchor": {"weight": 0.4}, "average_last": 0.25}
"""State of the learner beside weights and optimizer."""


@dataclass(frozen=True)
class Runs:
    """Directories of two runs with the same settings."""

    whole: Path
    killed: Path


@pytest.fixture(scope="module")
def runs_of(ours: Marked, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runs]:
    made: dict[str, Runs] = {}

    def runs(loss: str) -> Runs:
        if loss not in made:
            whole, killed = (_config(tmp_path_factory.mktemp(loss), model_dir, loss) for _ in range(2))
            finish(start("train", str(whole)))
            _kill_and_resume(killed, random.Random(SEEDS[loss]), ours, again=loss in TWICE)
            made[loss] = Runs(whole.parent / "run", killed.parent / "run")
        return made[loss]

    return runs


def _config(directory: Path, model_dir: Path, loss: str, **settings: Any) -> Path:
    seed = SEEDS[loss]
    fixed: dict[str, Any] = {
        "updates": UPDATES,
        "seed": seed,
        "deterministic": True,
        "prompts": {"seed": seed},
        "replay": {"max_staleness": 2},
        "learner": {"seed": seed, "loss": {"kind": loss, **LOSSES[loss]}, **AVERAGES},
        "checkpoints": {"every_updates": EVERY},
        "evaluation": {"prompts": 8, "every_updates": 5, "exact_every_updates": 5},
    }
    return small_run(directory, model_dir, **(fixed | settings))


def _kill_and_resume(config: Path, rng: random.Random, ours: Marked, *, again: bool) -> None:
    """Kill a run with -9 at a random moment between two checkpoints; if `again`, end it between two more."""
    run = config.parent / "run"
    process = start("train", str(config))
    wait_for_updates(process, run, _await_checkpoint(process, run) + 1)
    time.sleep(rng.uniform(0.0, 0.3))
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    for orphan in ours.running():
        orphan.kill()
    if again:
        process = start("train", str(config), "--resume")
        wait_for_updates(process, run, _await_checkpoint(process, run) + 1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        finish(process, 130)
    finish(start("train", str(config), "--resume"))


def _await_checkpoint(process: subprocess.Popen[str], run: Path) -> int:
    """Wait for the run's next checkpoint; return its update."""
    pointer = run / "checkpoints" / "latest"
    before = pointer.read_text() if pointer.is_file() else ""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None:
        if pointer.is_file() and pointer.read_text() != before:
            return int(pointer.read_text().strip().rpartition("-")[2])
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint: {process.communicate()}")


def replayed(run: Path, *arguments: str, into: str) -> dict[str, Any]:
    """Return the report of `offbeat replay RUN ARGUMENTS`."""
    assert main(["replay", str(run), "--output", str(run / into), *arguments]) == 0
    return json.loads((run / into / "report.json").read_text())


def assert_same(report: dict[str, Any], run: Path, updates: int) -> None:
    weights = report["weights"]
    assert weights["recorded"] == str(run / "final")
    assert weights["tensors"] > 10
    assert (weights["different"], weights["largest_difference"]) == (0, 0.0), weights["tensor"]
    assert report["first_difference"] is None
    assert (report["trained"], report["groups"], report["left_out"]) == (updates, 8 * updates, 0)
    assert (report["changed"], report["resumed_with"]) == ({}, {})
    exact = report["exact"]
    assert exact["exploitability"]["recorded"] == exact["exploitability"]["replay"] > 0.0


@pytest.mark.parametrize("loss", EACH)
def test_a_run_killed_at_a_random_moment_and_resumed_ends_with_the_weights_of_one_that_was_not(
    runs_of: Callable[[str], Runs], model_dir: Path, loss: str
) -> None:
    runs = runs_of(loss)
    summary = summary_of(runs.killed)
    assert (summary["status"], summary["updates"]) == ("completed", UPDATES)
    assert summary["ledger"]["trained"] == UPDATES * 8
    expected, found = (load_file(run / "final" / "model.safetensors") for run in (runs.whole, runs.killed))
    first = load_file(model_dir / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [name for name in expected if torch.equal(expected[name], first[name])] == []
    mean, same = (load_file(run / "final-average" / "model.safetensors") for run in (runs.whole, runs.killed))
    assert [name for name in mean if not torch.equal(mean[name], same[name])] == []
    assert [name for name in mean if torch.equal(mean[name], expected[name])] == []
    average = summary["average"]
    assert 0.0 < average["win_rate"]["value"] < 1.0
    assert 0.0 < average["exact"]["exploitability"] != summary["exploitability"]


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_a_replay_reaches_the_bits_of_the_run(runs_of: Callable[[str], Runs], loss: str) -> None:
    run = runs_of(loss).whole
    assert_same(replayed(run, into="again"), run, UPDATES)


@pytest.mark.long
def test_a_replay_reaches_the_bits_of_an_asynchronous_run_that_measured_its_steps(
    ours: Marked, tmp_path: Path, model_dir: Path
) -> None:
    """A replay measures no steps: measuring must leave no trace."""
    settings: dict[str, Any] = {
        "updates": 10,
        "seed": 0,
        "deterministic": False,
        "replay": {"max_staleness": 1},
        "learner": {"seed": 0, "loss": {"kind": "nash_pg"}},
    }
    finish(start("train", str(_config(tmp_path, model_dir, "nash_pg", **settings))))
    assert_same(replayed(tmp_path / "run", into="again"), tmp_path / "run", 10)


@pytest.mark.long
def test_a_replay_with_another_loss_and_bound_trains_on_the_fresh_groups_alone(
    runs_of: Callable[[str], Runs],
) -> None:
    run = runs_of("dpo").whole
    changes = ("--loss", "ipo", "--max-staleness", "0", "--set", "learner.loss.beta=0.5")
    what_if = replayed(run, *changes, into="what-if")
    assert what_if["changed"] == {"learner.loss.kind": ["dpo", "ipo"], "learner.loss.beta": [0.1, 0.5]}
    fresh = [age for row in JournalReader(run / "journal").rows for age in row.staleness].count(0)
    assert (what_if["groups"], what_if["left_out"]) == (fresh, 8 * UPDATES - fresh)
    assert 8 <= fresh < 8 * UPDATES
    assert what_if["weights"]["different"] == what_if["weights"]["tensors"]
    assert what_if["weights"]["largest_difference"] > 1e-5
    assert what_if["exact"]["exploitability"]["recorded"] != what_if["exact"]["exploitability"]["replay"]


def test_a_run_that_was_killed_and_resumed_is_replayed_as_one(runs_of: Callable[[str], Runs]) -> None:
    """It ended between two checkpoints: the journal must not have the updates after the first one twice."""
    run = runs_of("dpo").killed
    assert [row.update for row in JournalReader(run / "journal").rows] == list(range(UPDATES))
    assert_same(replayed(run, into="again"), run, UPDATES)
    last = UPDATES - UPDATES % EVERY
    later = replayed(run, "--from", f"update-{last:07}", into="later")
    assert (later["first"], later["trained"], later["weights"]["different"]) == (last, UPDATES - last, 0)
