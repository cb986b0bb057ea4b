"""A fixed schedule on the real engines: what kill -9 and a resume leave of the weights, bit by bit."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.runs import finish, small_run, start, summary_of
from tests.processes import Marked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("own"),
]

UPDATES = 16
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "nash_pg": {"opponent": {"kind": "mixture", "beta": 0.25, "completions_per_prompt": 2}},
}


def _config(directory: Path, model_dir: Path, loss: str, seed: int) -> Path:
    directory.mkdir()
    settings: dict[str, Any] = {
        "updates": UPDATES,
        "seed": seed,
        "deterministic": True,
        "prompts": {"seed": seed},
        "replay": {"max_staleness": 2},
        "learner": {"loss": {"kind": loss, **LOSSES[loss]}},
        "checkpoints": {"every_updates": 3},
        "evaluation": {"prompts": 8, "every_updates": 5},
    }
    return small_run(directory, model_dir, **settings)


@pytest.mark.parametrize(("loss", "seed"), [("dpo", 0), ("nash_pg", 1)])
def test_a_run_killed_at_random_moments_and_resumed_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, model_dir: Path, own: Marked, loss: str, seed: int
) -> None:
    whole = _config(tmp_path / "whole", model_dir, loss, seed)
    finish(start("train", str(whole)))
    killed = _config(tmp_path / "killed", model_dir, loss, seed)
    run, rng = killed.parent / "run", random.Random(seed)
    deaths = 0
    while deaths < 2:
        process = start("train", str(killed), *(["--resume"] if deaths else []))
        _kill_within(process, run, rng)
        deaths += 1
        for orphan in own.running():
            orphan.kill()
    finish(start("train", str(killed), "--resume"))
    summary = summary_of(run)
    assert (summary["status"], summary["updates"]) == ("completed", UPDATES)
    assert summary["ledger"]["trained"] == UPDATES * 8
    expected = load_file(whole.parent / "run" / "final" / "model.safetensors")
    found = load_file(run / "final" / "model.safetensors")
    first = load_file(model_dir / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [name for name in expected if torch.equal(expected[name], first[name])] == []


def _kill_within(process: subprocess.Popen[str], run: Path, rng: random.Random) -> None:
    """Kills the driver with -9 at a random moment after its next checkpoint."""
    before = (run / "checkpoints" / "latest").read_text() if (run / "checkpoints" / "latest").is_file() else ""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        pointer = run / "checkpoints" / "latest"
        if pointer.is_file() and pointer.read_text() != before:
            time.sleep(rng.uniform(0.0, 0.6))
            break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
