"""Whole runs whose reference is on actors of its own: to the bit through kills, a resume and a replay."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.records import flatten
from launch.cli import main
from launch.output.journal_reader import JournalReader
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

UPDATES = 16


def configured(directory: Path, model_dir: Path, **settings: Any) -> Path:
    fixed: dict[str, Any] = {
        "updates": UPDATES,
        "deterministic": True,
        "replay": {"max_staleness": 2},
        "learner": {"loss": {"kind": "nash_pg", "opponent": {"kind": "self"}}},
        "reference": {"count": 2, "cpus": 0.5, "max_restarts": 1},
        "generators": {"cpus": 0.5},
        "cluster": {"num_cpus": 3},
        "checkpoints": {"every_updates": 5},
        "evaluation": {"prompts": 4, "every_updates": 4, "exact_every_updates": UPDATES},
    }
    directory.mkdir()
    return small_run(directory, model_dir, **(fixed | settings))


@pytest.fixture(scope="module")
def whole(ours: Marked, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes on after one of its reference actors was killed."""
    config = configured(tmp_path_factory.mktemp("reference") / "whole", model_dir)
    process = start("train", str(config))
    wait_for_updates(process, config.parent / "run", 2)
    kill_a_reference_actor(ours)
    finish(process)
    return config.parent / "run"


def kill_a_reference_actor(ours: Marked) -> None:
    victim, _ = [each for each in ours.running() if "".join(each.cmdline()).startswith("ray::ReferenceWorker")]
    victim.kill()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def test_every_completion_that_was_trained_on_has_its_reference_log_probs(whole: Path) -> None:
    summary = summary_of(whole)
    assert (summary["status"], summary["updates"], summary["ledger"]["trained"]) == ("completed", UPDATES, UPDATES * 8)
    assert summary["kl"] > 0.0
    assert summary["time_budget"]["reference"]["scoring"] > 0.0
    batches = JournalReader(whole / "journal").batches(0)
    completions = [each for batch in batches for each in flatten(batch.groups)]
    assert len(completions) == UPDATES * 8 * 4
    assert all(len(each.reference_logprobs) == len(each.token_ids) for each in completions)
    assert all(value < 0.0 for each in completions for value in each.reference_logprobs)
    # What version 0 sampled, the reference scores as the engine did.
    gaps = [
        abs(ours - theirs)
        for each in completions
        if max(each.versions) == 0
        for ours, theirs in zip(each.reference_logprobs, each.logprobs, strict=True)
    ]
    assert len(gaps) >= 8 * 4
    assert max(gaps) < 1e-3


@pytest.mark.long
def test_a_run_whose_reference_actor_is_killed_and_that_is_interrupted_ends_with_the_same_weights(
    ours: Marked, model_dir: Path, tmp_path: Path
) -> None:
    undisturbed = configured(tmp_path / "undisturbed", model_dir)
    finish(start("train", str(undisturbed)))
    config = configured(tmp_path / "killed", model_dir)
    run = config.parent / "run"
    process = start("train", str(config))
    wait_for_updates(process, run, 2)
    kill_a_reference_actor(ours)
    wait_for_updates(process, run, 4)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    finish(start("train", str(config), "--resume"))
    expected, found = weights(undisturbed.parent / "run"), weights(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.long
def test_a_replay_reaches_the_bits_of_the_run(whole: Path) -> None:
    assert main(["replay", str(whole), "--output", str(whole / "again")]) == 0
    report = json.loads((whole / "again" / "report.json").read_text())
    assert (report["weights"]["different"], report["first_difference"], report["changed"]) == (0, None, {})


@pytest.mark.long
def test_a_replay_by_a_learner_that_holds_the_reference_reaches_the_weights_of_the_run_to_rounding(whole: Path) -> None:
    held = ["--set", "reference.count=0", "--output", str(whole / "held")]
    assert main(["replay", str(whole), *held]) == 0
    report = json.loads((whole / "held" / "report.json").read_text())
    assert report["changed"] == {"reference": ["recorded with the completions", None]}
    assert 0.0 < report["weights"]["largest_difference"] < 1e-3


@pytest.mark.long
def test_a_run_that_went_on_without_a_reference_cannot_take_the_groups_that_nobody_scored(
    ours: Marked, model_dir: Path, tmp_path: Path
) -> None:
    """The other way round it may: a learner with a reference needs nothing that was recorded."""
    config = configured(tmp_path / "switched", model_dir, reference={"count": 0})
    process = start("train", str(config))
    wait_for_updates(process, config.parent / "run", 2)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    _, told = finish(start("train", str(config), "reference.count=1", "--resume"), 2)
    assert "no reference log-probs: reference.count was 0 when they were judged, and is 1" in " ".join(told.split())
