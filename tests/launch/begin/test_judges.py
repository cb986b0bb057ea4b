"""What --judge may be, and what each spelling needs of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.begin import judges
from launch.begin.judges import read_judge
from launch.begin.rows import Sample
from launch.doctor.model_facts import WORLD_POLICY
from launch.settings.fields import settings
from launch.settings.run import RunConfig

KINDS = next(each.allowed for each in settings(RunConfig) if each.key == "judging.judge.kind").split(" | ")
PLAIN = Sample("p.jsonl", ("prompt",), ({"prompt": "a"},))


def sample(**columns: str) -> Sample:
    return Sample("p.jsonl", tuple(columns), (columns,))


def settings_of(judge: judges.Judge) -> dict[str, object]:
    return {line.key.removeprefix("judging.").removeprefix("judge."): line.value for line in judge.lines}


def test_every_kind_of_judge_is_known_by_its_name():
    assert [kind for kind in KINDS if kind not in judges._READERS] == []


@pytest.mark.parametrize(
    ("answer", "form"),
    [("3 + 4 = 7\n#### 7", None), (r"so \boxed{7}", "boxed"), ("B", "choice"), ("(c)", "math"), ("7", "math")],
)
def test_a_verifier_looks_where_the_gold_answers_are_and_asks_for_that(answer, form):
    judge = read_judge("verifier", sample(question="q", answer=answer), None)
    assert settings_of(judge) == {"kind": "verifier"} | ({"format": form} if form else {})
    assert judge.answer == "answer"
    assert judge.ask == judges._ASKS[form or "pattern"]


def test_the_form_of_answers_may_be_given():
    judge = read_judge("verifier:math", sample(problem="q", solution="s #### 7"), None)
    assert settings_of(judge) == {"kind": "verifier", "format": "math"}
    assert judge.answer == "solution"


def test_tests_and_instructions_are_read_from_the_columns_of_their_data_sets():
    code = read_judge("code", sample(text="t", test_list="assert f()"), None)
    assert (settings_of(code), code.answer) == ({"kind": "code"}, "test_list")
    ifeval = read_judge("instructions", sample(prompt="p", instruction_id_list="x", kwargs="y"), None)
    assert (settings_of(ifeval), ifeval.answer) == ({"kind": "instructions"}, ("instruction_id_list", "kwargs"))


def test_only_judges_with_a_model_of_their_own_take_a_share_of_a_gpu():
    given = ("reward:owner/model", "preference:owner/model", "served:m@http://a", "my.judges:f")
    assert [read_judge(each, PLAIN, None).loads for each in given] == [True, True, False, False]


def test_without_a_judge_a_column_of_answers_means_a_verifier():
    assert settings_of(read_judge(None, sample(question="q", answer="7"), None))["kind"] == "verifier"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("served:rm@http://127.0.0.1:8000", {"kind": "served", "url": "http://127.0.0.1:8000", "model": "rm"}),
        ("endpoint:o/m@https://a.b/v1", {"kind": "endpoint", "url": "https://a.b/v1", "model": "o/m"}),
        ("reward:owner/model", {"kind": "reward_model", "path": "owner/model"}),
        ("preference:owner/model", {"kind": "preference_model", "path": "owner/model"}),
        ("my.judges:f", {"kind": "function", "path": "my.judges:f"}),
        ("function:my.judges:f", {"kind": "function", "path": "my.judges:f"}),
    ],
)
def test_a_spelling_is_read_as_settings(given, wanted):
    found = settings_of(read_judge(given, PLAIN, None))
    assert {name: value for name, value in found.items() if name != "timeout_seconds"} == wanted


CAUSAL = {"architectures": ["LlamaForCausalLM"]}
CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"]}


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            "reward",
            CAUSAL,
            "names the architecture LlamaForCausalLM, which gives no scores; give a sequence classifier",
        ),
        ("reward", CLASSIFIER, "has 2 labels; give a sequence classifier with exactly 1 label"),
        ("reward", CLASSIFIER | {"id2label": {"0": "a", "1": "b", "2": "c"}}, "has 3 labels"),
        ("preference", CLASSIFIER | {"id2label": {"0": "a"}}, "has no preference.json; give the directory final/"),
    ],
)
def test_a_model_that_cannot_be_this_judge_is_refused_before_a_file_is_written(
    kind, config, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(judges, "read_model", lambda path: WORLD_POLICY)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"--judge {kind}:{tmp_path}: it") as refused:
        read_judge(f"{kind}:{tmp_path}", PLAIN, None)
    assert message in str(refused.value)


def test_a_reward_model_with_one_label_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "read_model", lambda path: WORLD_POLICY)
    for config in (CLASSIFIER | {"id2label": {"0": "a"}}, {"num_labels": 1}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert settings_of(read_judge(f"reward:{tmp_path}", PLAIN, None))["path"] == str(tmp_path)


def test_a_function_in_a_file_brings_the_columns_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its file is not imported: it may start whatever it likes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards").mkdir()
    source = "raise SystemExit\ndef good(prompts, completions, answer, level, missing=None, **rest): ...\n"
    (tmp_path / "rewards" / "mine.py").write_text(source)
    judge = read_judge("rewards/mine.py:good", sample(prompt="p", answer="a", level="1", other="x"), None)
    assert settings_of(judge) == {"kind": "function", "path": "rewards.mine:good"}
    assert (judge.answer, judge.columns) == ("answer", ("level",))
    assert read_judge("rewards.mine:good", sample(prompt="p", answer="a"), None).answer == "answer"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("best", "--judge best: no such kind of judge; allowed are\n  verifier "),
        ("llm judge:x", "no such kind of judge"),
        ("gold", "embedded world"),
        ("ensemble", "begin with one of them"),
        ("function", "write FILE.py:FUNCTION"),
        ("verifier", "has no column of them"),
        ("verifier:xml", "allowed: pattern, boxed, math, choice"),
        ("code", "has no column of them"),
        ("instructions", "instruction_id_list and no kwargs"),
        ("reward:", "names no model"),
        ("reward:./nothere", "does not exist"),
        ("served:http://127.0.0.1:8000", "needs the model's name on the server"),
        ("nothere.py:f", "nothere.py does not exist"),
        ("/etc/x.py:f", "does not exist"),
        ("mine.py:other", "has no function other; it has: good"),
        ("mine.py:", "no such kind of judge"),
        ("broken.py:f", "cannot be read as Python"),
        ("my-file.py:f", "rename it"),
        ("../outside.py:f", "is not below the working directory"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_with_what_to_do(given, message, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "mine.py").write_text("def good(prompt, completions): ...\n")
    (here / "my-file.py").touch()
    (here / "broken.py").write_text("def f(:\n")
    (tmp_path / "outside.py").write_text("def f(prompt, completions): ...\n")
    with pytest.raises(UsageError) as refused:
        read_judge(given, PLAIN, None)
    assert message in str(refused.value)
