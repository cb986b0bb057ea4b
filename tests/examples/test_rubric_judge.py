"""The example of a rubric: whole but for the model and the prompts, and a server that answers as asked judges by it."""

import asyncio
import json

from actors.judges.worker import JudgeWorker
from actors.records import Group
from launch.settings.loading import dump_config, load_config
from tests.fakes.generators import make_group
from tests.fakes.judges import FakeServer
from tests.house import ROOT

EXAMPLE = ROOT / "examples" / "rubric_judge.yaml"
REQUIRED = ["model.path=models/policy", "prompts.source=data/prompts.jsonl"]


def script(number, body):
    names = list(body["response_format"]["json_schema"]["schema"]["properties"])
    given = (5, 3, 1) if "<answer>\nx\n</answer>" in body["messages"][0]["content"] else (0, 5, 5)
    marks = dict(zip(names, given, strict=True))
    message = {"role": "assistant", "content": json.dumps(marks)}
    return 200, {}, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 90}}


def test_the_example_judges_by_its_rubric(tmp_path):
    with FakeServer(script) as server:
        config = load_config(EXAMPLE, [*REQUIRED, f"judging.judge.url={server.url}/v1"])
        (judged,) = asyncio.run(JudgeWorker(config.judging).judge([make_group(["x", "y"])]))
    assert isinstance(judged, Group)
    assert judged.judgement.scores == ((3 * 5 + 3 + 1) / 5, (5 + 5) / 5)


def test_a_run_s_record_of_it_is_read_back(tmp_path):
    config = load_config(EXAMPLE, REQUIRED)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
