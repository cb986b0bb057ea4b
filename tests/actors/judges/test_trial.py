"""Judges met before a run: what each says of two completions, and why it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from actors.judges.config import JudgingConfig
from actors.judges.trial import check_model_inputs, meet, trial_group
from actors.records import Prompt
from tests.fakes.tokenizers import chat_tokenizer

HERE = "tests.actors.judges.test_trial"
PROMPT = Prompt("p:0", (5, 6), "2+2?", answer="#### 4")
CHAT = Prompt("p:0", (5, 6), "2+2?", metadata={"messages": [{"role": "user", "content": "2+2?"}]})


def short(prompt: Any, completions: Any) -> list[float]:
    return [-float(len(each.text)) for each in completions]


def table(prompt: Any, completions: Any) -> list[list[float]]:
    return [[0.5, 0.75], [0.25, 0.5]]


def divides(prompt: Any, completions: Any) -> list[float]:
    return [len(each.text) / 0 for each in completions]


def slow(prompt: Any, completions: Any) -> None:
    import time

    time.sleep(5)


def needs_a_column(prompts: Any, completions: Any, solution: Any) -> list[float]:
    return [1.0] * len(prompts)


def met(prompt: Prompt = PROMPT, timeout_seconds: float = 5.0, **judge: Any) -> str:
    judging = JudgingConfig(judge=judge, timeout_seconds=timeout_seconds)
    return meet(judging.judge, judging, trial_group(prompt, chat_tokenizer()), None)


def test_a_judge_says_its_scores_and_which_way_is_up() -> None:
    told = met(kind="function", path=f"{HERE}:short")
    assert told == (
        f"judge function {HERE}:short, called as f(prompt, completions): 2 completions, scores -6 and -72 (of any "
        "size; the higher is the better)"
    )
    assert met(kind="verifier").endswith("scores 1 and 0 (from 0 to 1; the higher is the better)")
    assert met(kind="function", path=f"{HERE}:table").endswith(
        "prefers the first of 2 completions with probability 0.75"
    )


def test_a_run_of_conversations_is_tried_with_conversations() -> None:
    group = trial_group(PROMPT, chat_tokenizer(), conversations=True)
    assert [each.messages for each in group.completions] == [(("assistant", each.text),) for each in group.completions]
    assert [each.messages for each in trial_group(PROMPT, chat_tokenizer()).completions] == [(), ()]


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({"kind": "gold"}, "from outside the embedded world|world"),
        ({"kind": "function", "path": f"{HERE}:slow"}, r"slow did not judge .*judging\.timeout_seconds 0\.2"),
        ({"kind": "function", "path": f"{HERE}:needs_a_column"}, r"needs \['solution'\].*prompts\.columns"),
        ({"kind": "function", "path": f"{HERE}:nobody"}, "has no function 'nobody'"),
        ({"kind": "verifier", "answer_pattern": "####"}, "has no group"),
    ],
)
def test_a_judge_that_cannot_be_used_is_refused_with_the_cause(judge: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        met(timeout_seconds=0.2, **judge)


def test_a_function_s_traceback_begins_in_the_user_s_file() -> None:
    with pytest.raises(UsageError) as caught:
        met(kind="function", path=f"{HERE}:divides")
    first, *trace = str(caught.value).splitlines()
    assert "raised ZeroDivisionError: division by zero (tests/actors/judges/test_trial.py:" in first
    assert trace[0].startswith(f'  File "{Path(__file__)}", line ')
    assert "actors/judges/function.py" not in str(caught.value)


def model(directory: Path, tokenizer: Any, **settings: Any) -> Any:
    directory.mkdir()
    labels = settings.pop("labels", 1)
    config = {"model_type": "llama", "id2label": {str(k): f"LABEL_{k}" for k in range(labels)}, **settings}
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(directory)
    return JudgingConfig(judge={"kind": "reward_model", "path": str(directory)}).judge


def test_a_reward_model_s_labels_and_template_are_read_without_loading_it(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    check_model_inputs(model(tmp_path / "one", tokenizer), trial_group(CHAT, tokenizer), None)
    with pytest.raises(UsageError, match=r"two has 2 labels \(num_labels in its config\.json\); .* exactly 1"):
        check_model_inputs(model(tmp_path / "two", tokenizer, labels=2), trial_group(CHAT, tokenizer), None)
    bare = chat_tokenizer()
    bare.chat_template = None
    judge = model(tmp_path / "bare", bare)
    check_model_inputs(judge, trial_group(PROMPT, tokenizer), None)
    with pytest.raises(UsageError, match=r"the prompts are chats, and the tokenizer of .*bare has no chat template"):
        check_model_inputs(judge, trial_group(CHAT, tokenizer), None)
