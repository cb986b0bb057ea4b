"""The judge function that comes with Offbeat: what each check gives, worked by hand, and the prompts that name them."""

import json

import pytest

from actors.data.config import SHIPPED_PROMPTS
from actors.errors import UsageError
from actors.judges.functions.signatures import load_function
from actors.judges.instructions import followed, parse
from actors.records import Completion, Prompt
from launch.settings.loading import load_config

ROWS = [json.loads(line) for line in SHIPPED_PROMPTS["instructions"].read_text("utf-8").splitlines()]


def completion(text: str) -> Completion:
    return Completion(text=text, token_ids=(1,), logprobs=(0.0,), versions=(0,), finished=True)


@pytest.mark.parametrize(
    ("check", "answer", "score"),
    [
        ("words=2-4", "one two", 1),
        ("words=2-4", "one two three four", 1),
        ("words=2-4", "one", 1 / 2),
        ("words=2-4", "1 2 3 4 5", 4 / 5),
        ("words=2-4", "", 0),
        ("lowercase", "no capitals here, 7 words or so", 1),
        ("lowercase", "The SEA", 1 / 5),
        ("no_commas", "first; second", 1),
        ("no_commas", "first, second, third", 1 / 3),
        ("bullets=2", "- one\n- two", 1),
        ("bullets=2", "two things:\n  * one\n- two\n* three - and - dashes", 1 / 2),
        ("bullets=2", "-one", 1 / 3),
        ("sentences=1", "It is 3.5 m deep. ", 1),
        ("sentences=1", "Wait... What?! Yes.", 1 / 3),
        ("sentences=1", "no end", 1 / 2),
        ("includes=sea", "The Sea.", 1),
        ("includes=sea", "the season", 0),
    ],
)
def test_a_check_gives_one_for_what_was_asked_and_less_for_less(check, answer, score):
    assert followed(Prompt("p", (1,), "", answer=check), [completion(answer)]) == [score]


def test_a_completion_is_scored_with_the_mean_of_the_prompt_s_checks():
    prompt = Prompt("p", (1,), "", answer="words=1-2; lowercase;no_commas")
    assert followed(prompt, [completion("Yes"), completion("a, b, c d")]) == [
        (1 + 1 / 2 + 1) / 3,
        (1 / 2 + 1 + 1 / 3) / 3,
    ]


@pytest.mark.parametrize("text", ["", "rhymes", "words", "words=8", "words=a-b", "bullets=", "lowercase;"])
def test_a_check_that_nobody_knows_is_named_and_the_known_ones_shown(text):
    with pytest.raises(UsageError, match=r"is no check; write them as in 'words=8-20; sentences=1"):
        parse(text)


def test_the_preset_chat_names_this_function_and_prompts_that_come_with_offbeat():
    config = load_config("chat")
    assert load_function(config.judging.judge.path) is followed
    assert config.prompts.source in SHIPPED_PROMPTS
    assert {config.prompts.prompt_field, config.prompts.answer_field} == set(ROWS[0])


def test_every_prompt_asks_for_exactly_what_its_checks_check():
    says = {
        "words": lambda value: f"{value.replace('-', ' to ')} words",
        "sentences": lambda value: {"1": "one sentence"}[value],
        "bullets": lambda value: f"{value} bullet points",
        "includes": lambda value: f'the word "{value}"',
        "no_commas": lambda value: "commas",
    }
    wrong = []
    for row in ROWS:
        [message] = row["messages"]
        text, checks = message["content"], dict(part.strip().partition("=")[::2] for part in row["checks"].split(";"))
        asked = [name for name in ("words.", "sentence.", "bullet", "the word", "commas") if name in text]
        asked += ["lowercase"] if "lowercase" in text or "capital letters" in text else []
        missing = [name for name, value in checks.items() if name in says and says[name](value) not in text]
        if missing or len(asked) != len(checks) or ("lowercase" in checks) != ("lowercase" in asked):
            wrong.append(row)
    assert len(ROWS) == 192
    assert wrong == []
