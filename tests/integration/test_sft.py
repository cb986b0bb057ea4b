"""`offbeat sft` as a user starts it: a model from nothing that learns, serves as a policy, and resumes to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from actors.data.text import load_tokenizer
from launch.run.preflight import check_model
from launch.run.protocols import RunPlugin
from launch.settings.loading import load_config
from tests.integration.runs import finish, start, summary_of, wait_for_updates

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("own"),
]


EPOCHS = 20


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Sums of two digits; some 110 updates, an evaluation and a checkpoint now and then."""
    rows = [{"prompt": f"{a}+{b}", "response": f"{a + b:02d}"} for a in range(10) for b in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    path = tmp_path / "sft.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "path": "scratch",
                    "scratch": {"vocabulary": 300, "layers": 1, "heads": 1, "max_tokens": 64},
                },
                "data": {
                    "source": str(tmp_path / "sums.jsonl"),
                    "template": "{prompt}=",
                    "max_tokens": 64,
                    "on_malformed": "skip",
                    "validation_fraction": 0.1,
                },
                "training": {"epochs": EPOCHS, "batch_size": 16, "evaluate_every": 20},
                "learner": {"dtype": "float32", "zero_stage": 1, "optimizer": {"lr": 3e-3}},
                "checkpoints": {"every_updates": 25},
                "cluster": {"address": "local", "num_cpus": 1, "object_store_mib": 128},
            }
        )
    )
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32).state_dict()


def test_an_interrupted_and_resumed_run_ends_with_the_bits_of_one_that_was_not(config: Path, tmp_path: Path) -> None:
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    _, err = finish(start("sft", str(config), "--output", str(straight)))
    assert f"skipped {tmp_path / 'sums.jsonl'}:101: not JSON" in err
    summary = summary_of(straight)
    assert (summary["status"], summary["skipped_rows"]) == ("completed", 1)
    assert summary["train_examples"] + summary["held_out_examples"] == 100
    assert summary["updates"] == summary["total_updates"] == round(EPOCHS * summary["train_examples"] / 16)
    # 258 tokens, and then mostly which of ten digits.
    assert summary["held_out_at_start"]["loss"] > 5
    assert summary["held_out"]["loss"] < 2.5
    assert {path.name for path in straight.iterdir() if not path.name.startswith(".")} == {
        *(
            "config.yaml",
            "run_id",
            "metrics.jsonl",
            "tensorboard",
            "summary.json",
            "checkpoints",
            "start",
            "data",
            "final",
        )
    }

    process = start("sft", str(config), "--output", str(interrupted))
    wait_for_updates(process, interrupted, 1)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    summary = summary_of(interrupted)
    assert summary["status"] == "interrupted"
    assert 0 < summary["updates"] < summary["total_updates"]
    finish(start("sft", str(config), "--output", str(interrupted), "--resume"))
    steps = [json.loads(line)["step"] for line in (interrupted / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, summary["total_updates"] + 1))
    expected = weights(straight)
    for name, tensor in weights(interrupted).items():
        assert torch.equal(tensor, expected[name]), name

    # What `offbeat train` asks of model.path before it starts.
    final = straight / "final"
    fitting = ["prompts.max_prompt_tokens=8", "sampling.max_new_tokens=8", "generators.max_model_len=64"]
    config = load_config("embedded", [f"model.path={final}", "prompts.source=x.jsonl", *fitting])
    check_model(config, RunPlugin())
    tokenizer = load_tokenizer(str(final))
    prompt = torch.tensor([tokenizer("3+4=")["input_ids"]])
    answer = AutoModelForCausalLM.from_pretrained(final).generate(prompt, max_new_tokens=5, do_sample=False)
    assert answer[0, -1] == tokenizer.eos_token_id, "it has learnt where answers end"


def test_a_wrong_request_is_one_text_and_can_be_put_right_in_place(config: Path, tmp_path: Path) -> None:
    _, err = finish(start("sft", str(config), "data.on_malformed=error", "--output", str(tmp_path / "run")), 2)
    assert f"rows of data.source '{tmp_path / 'sums.jsonl'}' is malformed" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
