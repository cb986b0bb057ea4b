"""What only watches a run, and has gone: a reader of its log, a closed stderr, TensorBoard's files.

Long: `tests/launch/output` shows each of them, and `tests/launch/stages` that a signal has a stage save.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.verify import run_verify
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model
from tests.integration.runs import ROOT, summary_of, wait_for_updates

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def begin(config: Path, *more: str, **streams: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "launch", "sft", str(config), *more], cwd=ROOT, text=True, **streams)


@pytest.mark.long
def test_a_run_whose_watchers_are_gone_saves_when_it_is_asked_to_and_goes_on(own: Any, tmp_path: Path) -> None:
    """`offbeat train ... 2>&1 | tee log` and Ctrl-C, which `tee` dies of first: the run failed with the error `1`."""
    make_model(tmp_path / "start", ["0123456789"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=300))
    rows = [{"prompt": f"{n % 7}", "response": f"{n % 9}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, run = tmp_path / "sft.yaml", tmp_path / "run"
    config.write_text(
        f"model: {{path: {tmp_path}/start}}\n"
        f"output: {run}\n"
        f"data: {{source: {tmp_path}/rows.jsonl, max_tokens: 64}}\n"
        "learner: {dtype: float32, zero_stage: 1}\n"
        "training: {batch_size: 4, epochs: 12}\n"
        "cluster: {address: local, num_cpus: 1, object_store_mib: 128}\n"
    )
    process = begin(config, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    wait_for_updates(process, run, 1)
    process.send_signal(signal.SIGXCPU)
    assert process.wait(120) == 130
    assert summary_of(run)["status"] == "interrupted"

    for file in (run / "tensorboard").iterdir():
        file.unlink()
    (run / "tensorboard").rmdir()
    (run / "tensorboard").write_text("in its way")
    process = begin(config, "--resume", preexec_fn=lambda: [os.close(number) for number in (1, 2)])
    assert process.wait(300) == 0
    assert summary_of(run)["status"] == "completed"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "lr" in line]
    assert steps == list(range(1, summary_of(run)["updates"] + 1))
    assert run_verify(run) == 0
