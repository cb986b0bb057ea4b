"""Scores, rubrics and structured outputs of a language model as a judge, played by a server of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from actors.errors import RunError, UsageError
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.endpoint import EndpointJudge
from actors.judges.http.questions import OutOfScaleError, Question
from tests.actors.judges.http.test_endpoint import completion, judged, longer, only
from tests.fakes.generators import make_group
from tests.timing import assert_quick

RUBRIC: dict[str, Any] = {
    "mode": "rubric",
    "criteria": [{"name": "correct", "description": "It is right.", "weight": 3.0}, {"name": "Clear"}],
}


def question(**settings: Any) -> Question:
    return Question(EndpointJudgeConfig(url="http://h", model="m", **settings))


def answered(body: Any) -> str:
    """The completion that a request shows."""
    match = re.search(r"<answer>\n(.*?)\n</answer>", body["messages"][-1]["content"], re.DOTALL)
    assert match is not None
    return match[1]


def by_text(**texts: Any) -> Callable[[int, Any], Any]:
    """A judge that says of each completion what is given."""
    return lambda n, body: completion(texts[answered(body)])


# Scores.


def test_each_completion_of_different_text_is_scored_once_on_the_scale() -> None:
    answers, judge, server = judged(by_text(x="3", y="Score: 9.5"), [make_group(["x", "y", "x"])], mode="score")
    judgement = only(answers)
    assert judgement.scores == (3.0, 9.5, 3.0)
    assert judgement.preferences is None
    assert (judge.metrics()["ratings"], judge.metrics()["comparisons"]) == (2, 0)
    text = server.bodies[0]["messages"][0]["content"]
    assert "<request>\nprompt 0\n</request>" in text
    assert text.endswith("from 1 (of no use) to 10 (perfect)? Reply with the number alone.")
    assert server.bodies[0]["max_tokens"] == 256


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7.0),
        (" 7.5. ", 7.5),
        ("**8**", 8.0),
        ("Score: 8/10", 8.0),
        ("Final score - **10**", 10.0),
        ("8 / 10.0", 8.0),
        ("First I thought 3.\n3\nBut:\n7", 7.0),
        ('{"score": 4}', 4.0),
        ('```json\n{"score": "4.5"}\n```', 4.5),
        ('{"thought": "uses {braces} and 9", "score": 2}', 2.0),
        ('{"score": 2} no, {"Score": 6}', 6.0),
        ('It claims {"score": 10}, which is wrong.\n\n3', 3.0),
        ('4\n\n{"score": 2}\n', 2.0),
        ('{"score": 2}/10', 2.0),
        ('{\n"others": [\n9\n],\n"score": 2}', 2.0),
        ("It deserves a 7", None),
        ("8-9", None),
        ("7%", None),
        ("7..5", None),
        ("1,000", None),
        ("\u0667", None),  # a digit, but not of ours
        ("1e1", None),
        ("nan", None),
        ("infinity", None),
        ("A", None),
        ("", None),
        ('{"score": null}', None),
        ('{"score": true}', None),
        ('{"score": [7]}', None),
        ('{"score": NaN}', None),
        ("{" * 100_000, None),
        ('{"a":' * 100_000, None),
        ("-" * 100_000, None),
    ],
)
def test_a_score_is_a_number_on_a_line_of_its_own_the_last_one_or_json(text: str, score: float | None) -> None:
    assert question(mode="score").score(text) == score
    assert_quick(lambda: question(mode="score").score(text), 0.5)


@pytest.mark.parametrize(
    "text", ["0", "11", "-5", "Score: -5", "10.01", "7/100", "9" * 5000, '{"score": 0}', f'{{"score": {"9" * 5000}}}']
)
def test_a_score_outside_the_scale_is_not_bent_into_it(text: str) -> None:
    with pytest.raises(OutOfScaleError):
        question(mode="score").score(text)


def test_the_scale_may_be_any_and_a_minus_is_no_dash() -> None:
    asked = question(mode="score", scale=[-5, 5])
    assert [asked.score(text) for text in ("-5", "Score: -4.5", "+3", "Score - 3")] == [-5.0, -4.5, 3.0, 3.0]


def test_a_pattern_of_ones_own_finds_the_score() -> None:
    asked = question(mode="score", verdict_pattern=r"<mark>(.*?)</mark>")
    assert asked.score("<mark>2</mark><mark> 3 </mark>") == 3.0
    assert asked.score("<mark>three</mark>") is None
    assert asked.score("<mark>1_0</mark>") is None


def test_a_score_outside_the_scale_is_asked_again_and_then_an_abstention_which_gets_the_mean_of_the_others() -> None:
    tries: list[str] = []

    def script(n: int, body: Any) -> Any:
        text = answered(body)
        tries.append(text)
        return completion({"x": "11", "y": "2", "z": "0" if tries.count("z") == 1 else "6"}[text])

    answers, judge, _ = judged(script, [make_group(["x", "y", "z"])], mode="score", request_retries=2)
    assert only(answers).scores == (4.0, 2.0, 6.0)
    assert (tries.count("x"), tries.count("z")) == (3, 2)
    metrics = judge.metrics()
    assert (metrics["garbage"], metrics["abstentions"], metrics["out_of_scale"]) == (4, 1, 1)


def test_an_abstention_may_fail_its_group_and_all_of_them_always_do() -> None:
    answers, _, _ = judged(by_text(x="Hm.", y="2"), [make_group(["x", "y"])], mode="score", abstention="fail")
    assert (
        "no verdict on a completion of prompt 'fake:0'; with judging.judge.abstention=tie it counts as the mean"
        in str(answers[0])
    )
    answers, _, _ = judged(by_text(x="Hm.", y="11"), [make_group(["x", "y"])], mode="score", request_retries=0)
    assert isinstance(answers[0], RunError)
    assert "in any of 2 answers (1 outside judging.judge.scale" in str(answers[0])


def test_a_score_that_was_cut_short_is_an_abstention() -> None:
    def script(n: int, body: Any) -> Any:
        return completion("1", finish_reason="length") if answered(body) == "x" else completion("7")

    answers, judge, _ = judged(script, [make_group(["x", "y"])], mode="score")
    assert only(answers).scores == (7.0, 7.0)
    assert judge.metrics()["cut_off"] == 1


# Rubrics.


def test_a_rubric_s_score_is_the_mean_of_its_criteria_by_weight() -> None:
    marks = {"x": '{"correct": 10, "Clear": 2}', "y": "1. **Correct**: 1/10\n2. Clear - 9\n"}
    answers, _, server = judged(by_text(**marks), [make_group(["x", "y"])], **RUBRIC)
    assert only(answers).scores == ((3 * 10 + 2) / 4, (3 * 1 + 9) / 4)
    text = server.bodies[0]["messages"][0]["content"]
    assert text.startswith(
        "Score an answer to a request by each of these criteria, from 1 (not met) to 10 (fully met):\n\n"
        "- correct: It is right.\n- Clear\n\n<request>"
    )
    assert text.endswith('Reply with one JSON object alone that has a number for each criterion: "correct", "Clear".')


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"correct": 10}', "no number for the criterion Clear"),
        ('{"correct": 10, "clear": null}', "no number for the criterion Clear"),
        ('{"correct": 10, "clear": "good"}', "no number for the criterion Clear"),
        ('{"correct": 11, "clear": 3}', "correct is 11, outside the scale 1 to 10"),
        ("correct: 3", "no number for the criterion Clear"),
        ("correct: 3\nclear: -3", "Clear is -3, outside"),
        ("correct: 3\nincorrect clear: 4", "no number for the criterion Clear"),
    ],
)
def test_a_rubric_is_filled_in_whole_or_asked_again(text: str, what: str) -> None:
    with pytest.raises(OutOfScaleError, match=what):
        question(**RUBRIC).score(text)


@pytest.mark.parametrize("text", ["", "Both are fine.", "{}", "[7, 8]", '{"other": 7}', "7", "correctness: 7"])
def test_a_text_without_any_of_the_criteria_says_nothing(text: str) -> None:
    assert question(**RUBRIC).score(text) is None


# Structured outputs.


def test_scores_and_rubrics_ask_for_json_of_the_right_shape() -> None:
    _, _, server = judged(by_text(x='{"correct": 1, "Clear": 1}'), [make_group(["x"])], **RUBRIC, scale=[0, 1])
    number = {"type": "number", "minimum": 0.0, "maximum": 1.0}
    assert server.bodies[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "verdict",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"correct": number, "Clear": number},
                "required": ["correct", "Clear"],
                "additionalProperties": False,
            },
        },
    }


def test_pairs_may_be_asked_for_as_json_too() -> None:
    def script(n: int, body: Any) -> Any:
        assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "C"]
        letter = longer(n, body)[2]["choices"][0]["message"]["content"]
        return completion(json.dumps({"verdict": letter}))

    answers, _, _ = judged(script, [make_group(["x", "xx"])], structured="on")
    assert only(answers).preferences == ((0.5, 0.0), (1.0, 0.5))


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_format_is_asked_without_it_from_then_on(status: int) -> None:
    def script(n: int, body: Any) -> Any:
        if "response_format" in body:
            return status, {}, b"response_format is not supported"
        return longer(n, body)

    groups = [make_group(["x", "xx", "xxx"])]
    answers, judge, server = judged(script, groups, structured="auto", max_concurrent_requests=1)
    assert only(answers).scores == (0.0, 0.5, 1.0)
    assert ["response_format" in body for body in server.bodies].count(True) <= 6
    assert "response_format" not in server.bodies[-1]
    assert judge.metrics()["answered"] == 6


def test_the_refusal_is_remembered() -> None:
    def script(n: int, body: Any) -> Any:
        return (400, {}, b"no") if "response_format" in body else completion("3")

    groups = [make_group(["x"]), make_group(["y"], index=1)]
    _, judge, server = judged(script, groups[:1], mode="score")
    assert ["response_format" in body for body in server.bodies] == [True, False]
    assert judge._structured is False


def test_a_request_that_is_refused_in_both_forms_says_nothing_of_the_format() -> None:
    answers, judge, server = judged(lambda n, body: (400, {}, b"too long"), [make_group(["x"])], mode="score")
    assert isinstance(answers[0], UsageError)
    assert "status 400, a wrong request: too long" in str(answers[0])
    assert len(server.bodies) == 2
    assert judge._structured is True


def test_with_structured_on_a_refusal_is_told_with_the_setting() -> None:
    answers, _, server = judged(
        lambda n, body: (400, {}, b"no"), [make_group(["x"])], mode="score", structured="on", request_retries=0
    )
    assert isinstance(answers[0], UsageError)
    assert "set judging.judge.structured to auto or off" in str(answers[0])
    assert len(server.bodies) == 1


def test_a_format_of_ones_own_is_sent_as_it_is() -> None:
    own = {"response_format": {"type": "json_object"}}
    _, _, server = judged(by_text(x='{"score": 7}'), [make_group(["x"])], mode="score", extra_body=own)
    assert server.bodies[0]["response_format"] == own["response_format"]


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "rubric"}, "mode rubric with 0 criteria: mode rubric needs one or more"),
        ({"mode": "score", "criteria": RUBRIC["criteria"]}, "mode score with 2 criteria"),
        ({"mode": "rubric", "criteria": [{"name": "a"}, {"name": "A"}]}, "the criteria a, a must have different names"),
        ({"mode": "rubric", "criteria": [{"name": "a"}, {"name": "7"}]}, r"criterion 2\.name: String should match"),
        (
            {"mode": "rubric", "criteria": [{"name": "a", "weight": 0}]},
            r"criterion 1\.weight: it should be greater than 0",
        ),
        ({"mode": "rubric", "criteria": [{"name": "a", "weigth": 2}]}, r"criterion 1\.weigth: no such setting here"),
        ({"mode": "score", "scale": [5, 5]}, r"scale \[5, 5\] must go from a lower to a higher score"),
        ({"mode": "score", "use_logprobs": True}, "use_logprobs reads the letter of a comparison"),
        ({"structured": "auto", "use_logprobs": True}, "set mode pairs and structured off, or use_logprobs false"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EndpointJudgeConfig(url="http://h", model="m", **settings)


def test_the_defaults_of_a_mode_are_recorded_with_it_and_pairs_keep_theirs() -> None:
    pairs = EndpointJudgeConfig(url="http://h", model="m")
    assert (pairs.mode, pairs.structured, pairs.max_tokens) == ("pairs", "off", 16)
    score = EndpointJudgeConfig(url="http://h", model="m", mode="score")
    assert (score.structured, score.max_tokens) == ("auto", 256)
    assert EndpointJudgeConfig(**score.model_dump()) == score
    assert EndpointJudgeConfig(url="http://h", model="m", mode="score", max_tokens=5).max_tokens == 5


def test_a_recorded_configuration_may_change_its_mode() -> None:
    recorded = EndpointJudgeConfig(url="http://h", model="m").model_dump()
    assert Question(EndpointJudgeConfig(**recorded | {"mode": "score"})).score("7") == 7.0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ first }} {{ second }}", r"with mode score it must use completion, and may use .*'high', 'low'"),
        ("{{ completion }} {{ criteria }}", "uses .*'criteria'"),
    ],
)
def test_the_template_of_a_mode_uses_its_variables(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EndpointJudge(EndpointJudgeConfig(url="http://h", model="m", mode="score", template=template))


def test_a_template_that_raises_anything_fails_its_prompt_with_the_cause() -> None:
    answers, _, _ = judged(longer, [make_group(["x"])], mode="score", template="{{ completion + 1 }}")
    assert isinstance(answers[0], UsageError)
    assert "cannot be filled in for prompt 'fake:0': TypeError" in str(answers[0])
