"""Whole runs with adapters: published alone into a real engine, resumed and replayed to the bit, read by peft."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from launch.cli import main
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

UPDATES = 10


def configured(directory: Path, model_dir: Path) -> Path:
    directory.mkdir()
    return small_run(
        directory,
        model_dir,
        updates=UPDATES,
        deterministic=True,
        learner={
            "loss": {"kind": "nash_pg", "opponent": {"kind": "weighted"}},
            "lora": {"rank": 3, "alpha": 6},
            "optimizer": {"lr": 1e-2},
        },
        evaluation={"prompts": 4, "every_updates": 5, "exact_every_updates": UPDATES},
    )


@pytest.fixture(scope="module")
def whole(ours: Marked, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = configured(tmp_path_factory.mktemp("lora") / "whole", model_dir)
    finish(start("train", str(config)))
    return config.parent / "run"


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "adapter_model.safetensors")


def test_engines_sample_with_the_adapter_that_the_learner_trained(whole: Path, model_dir: Path) -> None:
    summary = summary_of(whole)
    assert (summary["status"], summary["updates"]) == ("completed", UPDATES)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    # Under a lease's own version the learner's log-probs are the engine's; later adapters have moved away from them.
    by_staleness = {row["staleness_max"]: row["log_ratio_max"] for row in rows if "log_ratio_max" in row}
    assert by_staleness[0] < 1e-3
    assert by_staleness[1] > 0.01
    # The final evaluation compares log-probs of the last version, which an engine without adapter would not have.
    assert summary["log_ratio_max"] < 1e-3
    assert summary["exact_kl"] > 0.001
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), whole / "final")
    assert {name for name, _ in model.named_parameters() if "lora_" in name}


@pytest.mark.long
def test_a_run_that_was_interrupted_ends_with_the_same_adapter(whole: Path, model_dir: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "interrupted", model_dir)
    process = start("train", str(config))
    wait_for_updates(process, config.parent / "run", 4)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    _, told = finish(start("train", str(config), "learner.lora.rank=4", "--resume"), 2)
    assert "learner.lora" in told
    finish(start("train", str(config), "--resume"))
    expected, found = adapter(whole), adapter(config.parent / "run")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.long
def test_a_replay_reaches_the_bits_of_the_run(whole: Path) -> None:
    assert main(["replay", str(whole), "--output", str(whole / "again")]) == 0
    report = json.loads((whole / "again" / "report.json").read_text())
    assert (report["weights"]["different"], report["first_difference"]) == (0, None)
    assert report["weights"]["tensors"] == len(adapter(whole))
