"""`offbeat evaluate` on the real engines: every prompt is answered, judged and ranked, and the files say what was."""

import json

import pytest
import yaml

from launch.cli import main
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


def test_answers_are_sampled_judged_ranked_and_written(tmp_path, capsys):
    make_model(tmp_path / "policy", ["5+7=12"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=64))
    rows = [{"question": f"{n}+1", "answer": str(n + 1)} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": {"path": str(tmp_path / "policy")},
        "prompts": {
            "source": str(tmp_path / "rows.jsonl"), "prompt_field": "question", "answer_field": "answer",
            "template": "{prompt}=", "max_prompt_tokens": 16,
        },
        "sampling": {"max_new_tokens": 8},
        "generators": {"dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64},
        "judging": {"judge": {"kind": "verifier"}, "missing_eos_score": None},
        "publication": {"canary_tokens": 16},
        "cluster": {"address": "local", "num_cpus": 1, "object_store_mib": 128},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("solutions", "pairs", "output")}
    options = [f"--{name}={path}" for name, path in files.items()]
    verifier = ["--verifier", str(tmp_path / "policy"), "--threshold", "0"]
    assert main(["evaluate", str(tmp_path / "run.yaml"), "--best-of", "3", "--prompts", "4", *verifier, *options]) == 0

    solutions = [json.loads(line) for line in files["solutions"].read_text().splitlines()]
    assert len(solutions) == 12
    assert {each["prompt"] for each in solutions} <= {f"{n}+1=" for n in range(5)}
    assert len({each["prompt_id"] for each in solutions}) == 4
    assert all(each["correct"] and each["score"] == 0.0 and each["verifier_scores"][0] < 0.0 for each in solutions)
    assert files["pairs"].read_text() == ""  # all correct: nothing to prefer
    figures = json.loads(files["output"].read_text())
    assert (figures["prompts"], figures["candidates"], figures["pass_at_1"]["value"]) == (4, 3, 1.0)
    assert [row["verifiers"][0]["value"] for row in figures["rows"]] == [1.0, 1.0, 1.0]
    assert "4 prompts, 3 candidates each" in capsys.readouterr().out
