"""The calculator example: its sums are right, its files load, and what is asked was not shown."""

import itertools
import json

import pytest
from transformers import AutoTokenizer

from actors.environments.calculator import Calculator, evaluate
from examples.calculator import make
from launch.settings import verbs
from launch.settings.loading import load_config
from tests.house import ROOT


def test_each_question_holds_its_numbers_and_the_calculator_agrees_with_the_answer():
    for question, expression, value in itertools.islice(make.sums(seed=3), 200):
        assert evaluate(expression) == str(value)
        digits = expression.translate(str.maketrans("()+-*", "     ")).split()
        assert all(number in question.replace(",", " ").split() for number in digits)


def test_a_demonstration_uses_the_calculator_as_the_environment_does(tmp_path):
    make.make(tmp_path, demonstrations=200, prompts=20)
    shown = [json.loads(line)["messages"] for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert (len(shown), len(asked)) == (200, 20)
    used = [messages for messages in shown if len(messages) == 4]
    assert all(Calculator().step(messages[1]["content"]) == messages[2] for messages in used)
    unasked = [messages for messages in shown if make.ASK not in messages[0]["content"]]
    assert 0 < sum(messages in used for messages in unasked) < len(unasked) / 4
    questions = {messages[0]["content"].removesuffix(make.ASK) for messages in shown}
    assert questions.isdisjoint(row["prompt"][0]["content"] for row in asked)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.apply_chat_template(used[0], tokenize=False).count("<|end|>\n") == 4


@pytest.mark.parametrize("verb", ["sft", "train"])
def test_its_settings_are_accepted(verb, monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config(f"examples/calculator/{verb}.yaml", [], {"sft": verbs.SFT, "train": verbs.TRAIN}[verb])
