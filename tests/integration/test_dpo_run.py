"""`offbeat dpo` through the command line: what it leaves is a model that `offbeat train` starts from."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.data.text import load_tokenizer
from launch.cli import main
from launch.run.preflight import check_model
from launch.run.protocols import RunPlugin
from launch.settings.loading import load_config
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_run_learns_its_pairs_and_leaves_a_model_to_start_from(tmp_path):
    make_model(tmp_path / "start", ["0123456789"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=300))
    rows = [{"prompt": f"{n % 7}", "chosen": "yes", "rejected": "no", "probability": 0.9} for n in range(28)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dpo.yaml").write_text(
        f"model: {{path: {tmp_path}/start}}\n"
        f"data: {{source: {tmp_path}/pairs.jsonl, validation_fraction: 0.3}}\n"
        "learner: {dtype: float32, zero_stage: 1, optimizer: {lr: 0.003}, loss: {beta: 0.5}}\n"
        "training: {batch_size: 8, epochs: 3}\n"
        "cluster: {address: local, num_cpus: 1}\n"
    )
    assert main(["dpo", str(tmp_path / "dpo.yaml"), "--output", str(tmp_path / "run")]) == 0

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["held_out_at_start"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert summary["held_out"]["loss"] < 0.6
    assert summary["held_out"]["accuracy"] == 1.0

    final = tmp_path / "run" / "final"
    record = json.loads((final / "dpo.json").read_text())
    assert record == {"reference": str(tmp_path / "start"), "kind": "dpo", "beta": 0.5, "label_smoothing": 0.0}
    # What `offbeat train` asks of model.path before it starts.
    config = load_config("embedded", [f"model.path={final}", "prompts.source=x.jsonl", "generators.max_model_len=64"])
    check_model(config, RunPlugin())
    model, start = (AutoModelForCausalLM.from_pretrained(path) for path in (final, tmp_path / "start"))
    tokenizer = load_tokenizer(str(final))
    ids = torch.tensor([[*tokenizer("3")["input_ids"], *tokenizer("yes")["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) < float(start(ids, labels=ids).loss)
