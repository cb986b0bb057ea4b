"""SIGTERM to the process group when all updates are made, as `timeout`, Slurm and a stopping container send it.

Long: `tests/launch/test_signals_at_the_end.py` shows it with fakes for the actors.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.records import Completion, Prompt
from launch.verify import run_verify
from learner.backend.manifest import MANIFEST
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]


PLACE = "OFFBEAT_TEST_PLACE"
"""Environment variable: the directory of a test."""


def longest(prompt: Prompt, completions: Sequence[Completion]) -> list[int]:
    """Prefer long answers; take half a second for each prompt once the model is saved, until `hurry` is there."""
    place = Path(os.environ[PLACE])
    if (place / "run" / "final" / MANIFEST).is_file() and not (place / "hurry").is_file():
        time.sleep(0.5)
    return [len(completion.token_ids) for completion in completions]


@pytest.mark.long
def test_a_signal_in_the_final_evaluation_waits_for_it_and_a_second_one_ends_the_run_which_can_be_resumed(
    own: Any, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation takes eight seconds at least."""
    monkeypatch.setenv(PLACE, str(tmp_path))
    judging = {"judge": {"kind": "function", "path": f"{__name__}:longest"}}
    config = small_run(tmp_path, model_dir, updates=2, judging=judging, evaluation={"prompts": 16})
    run = config.parent / "run"
    process = start("train", str(config), group=True)
    wait_until(lambda: (run / "final" / MANIFEST).is_file(), process)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(2.0)  # less, and both would be one
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    _, err = finish(process, 130)
    assert "all updates are done, saving and evaluating" in err
    assert "Traceback" not in err
    assert summary_of(run)["status"] == "interrupted"
    assert run_verify(run) == 0

    (tmp_path / "hurry").touch()
    finish(start("train", str(config), "--resume"))
    assert summary_of(run)["status"] == "completed"
    assert summary_of(run)["updates"] == 2


@pytest.mark.long
def test_a_signal_at_the_end_of_a_stage_leaves_a_run_that_is_complete_or_can_be_resumed(
    own: Any, tmp_path: Path
) -> None:
    make_model(tmp_path / "start", ["0123456789"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=300))
    rows = [{"prompt": f"{n % 7}", "chosen": "yes", "rejected": "no"} for n in range(28)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dpo.yaml").write_text(
        f"model: {{path: {tmp_path}/start}}\n"
        f"output: {tmp_path}/run\n"
        f"data: {{source: {tmp_path}/pairs.jsonl, validation_fraction: 0.3}}\n"
        "learner: {dtype: float32, zero_stage: 1}\n"
        "training: {batch_size: 4, epochs: 1}\n"
        "cluster: {address: local, num_cpus: 1}\n"
    )
    updates, run = 5, tmp_path / "run"  # of 28 pairs 8 or 9 are held out
    process = start("dpo", str(tmp_path / "dpo.yaml"), group=True)
    wait_for_updates(process, run, updates)
    while process.poll() is None:  # within a second of each other they are one, and none may meet a bad moment
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode in (0, 130), f"{out}\n{err}"
    assert "Traceback" not in err
    if process.returncode:
        assert summary_of(run)["status"] == "interrupted"
        finish(start("dpo", str(tmp_path / "dpo.yaml"), "--resume"))
    assert summary_of(run)["status"] == "completed"
    assert run_verify(run) == 0
