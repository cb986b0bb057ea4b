"""`offbeat preference` through the command line: what it leaves judges completions."""

import asyncio
import json

import pytest

from actors.judges.config import PreferenceModelJudgeConfig
from actors.judges.factory import make_judge
from actors.records import Completion, Group, Lease, Prompt
from actors.world import EOS, prompt_token_ids
from launch.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_run_leaves_a_calibrated_judge_with_a_card(tmp_path, model_dir):
    arguments = [f"model.path={model_dir}", "data.world.pairs=1500", "data.validation_fraction=0.2"]
    arguments += ["training.epochs=3", "training.batch_size=64", "training.evaluate_every=10"]
    arguments += ["cluster.address=local", "cluster.num_cpus=1"]
    assert main(["preference", "embedded", *arguments, "--output", str(tmp_path / "run")]) == 0

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    final = tmp_path / "run" / "final"
    assert summary["status"] == "completed"
    assert summary["held_out_at_start"]["loss"] == pytest.approx(0.693, abs=0.02)
    assert summary["best_held_out_loss"] < summary["held_out_at_start"]["loss"]
    assert summary["model_card"] == json.loads((final / "model_card.json").read_text())
    # The card's loss before calibration is that of the best model, measured by other code.
    assert summary["model_card"]["nll_before"] == pytest.approx(summary["best_held_out_loss"], abs=1e-4)
    assert summary["model_card"]["nll"] <= summary["model_card"]["nll_before"] + 1e-6

    judge = make_judge(PreferenceModelJudgeConfig(path=str(final)), tokenizer=str(final))
    completions = [Completion(ids, (-1.0,) * len(ids), (0,) * len(ids), "", True) for ids in ((4, EOS), (6, 7, EOS))]
    group = Group(Lease(0, 0, Prompt("p", prompt_token_ids(3), "red west"), 0, 60.0), tuple(completions))
    table = asyncio.run(judge.judge([group]))[0].preferences
    assert table[0][1] + table[1][0] == 1.0
    assert table[0][0] == table[1][1] == 0.5
    assert table[0][1] != 0.5
