"""A language model as a judge, played by a server of this machine: orders, verdicts, abstentions, costs, failures."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EndpointJudgeConfig, JudgingConfig
from actors.judges.factory import make_judge
from actors.judges.http.endpoint import EndpointJudge
from actors.judges.http.questions import PAIRS_TEMPLATE, Question, compile_template
from actors.judges.worker import JudgeWorker
from actors.records import Failure, Group, Judgement, Prompt
from tests.fakes.generators import make_group
from tests.fakes.judges import FakeServer

ANSWERS = re.compile(r"<answer_a>\n(.*?)\n</answer_a>\n<answer_b>\n(.*?)\n</answer_b>", re.DOTALL)


def verdict_of(text: str, **settings: Any) -> str | None:
    return Question(EndpointJudgeConfig(url="http://h", model="m", **settings)).letter(text, structured=False)


def completion(content: str | None, **choice: Any) -> Any:
    """A chat completion as the API gives it: 100 tokens in, 3 out."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", **choice}]
    return (
        200,
        {},
        {"object": "chat.completion", "choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 3}},
    )


def shown(body: Any) -> tuple[str, str]:
    """The answers that a request shows, first and second."""
    match = ANSWERS.search(body["messages"][-1]["content"])
    assert match is not None
    return match[1], match[2]


def longer(n: int, body: Any) -> Any:
    first, second = shown(body)
    return completion("A" if len(first) > len(second) else "B")


def judged(
    script: Callable[[int, Any], Any], groups: Sequence[Group], **settings: Any
) -> tuple[list[Judgement | OffbeatError], EndpointJudge, FakeServer]:
    settings = {"request_backoff_seconds": 0.0, "request_timeout_seconds": 5.0} | settings
    with FakeServer(script) as server:
        judge = make_judge(EndpointJudgeConfig(url=f"{server.url}/v1", model="judge-1", **settings))
        assert isinstance(judge, EndpointJudge)
        return list(asyncio.run(judge.judge(groups))), judge, server


def only(answers: Sequence[Judgement | OffbeatError]) -> Judgement:
    (answer,) = answers
    assert isinstance(answer, Judgement), answer
    return answer


def test_every_pair_is_asked_in_both_orders_and_the_mean_preference_is_the_score() -> None:
    answers, _, server = judged(longer, [make_group(["xx", "x", "xxx"])])
    assert sorted(map(shown, server.bodies)) == sorted(
        [("xx", "x"), ("x", "xx"), ("xx", "xxx"), ("xxx", "xx"), ("x", "xxx"), ("xxx", "x")]
    )
    judgement = only(answers)
    assert judgement.preferences == ((0.5, 1.0, 0.0), (0.0, 0.5, 0.0), (1.0, 1.0, 0.5))
    assert judgement.scores == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("letter", ["A", "B", "C"])
def test_a_judge_that_looks_at_the_position_alone_prefers_nothing(letter: str) -> None:
    answers, judge, _ = judged(lambda n, body: completion(letter), [make_group(["x", "xx", "xxx"])])
    assert only(answers).preferences == ((0.5, 0.5, 0.5),) * 3
    assert judge.metrics()["order_disagreements"] == (0 if letter == "C" else 3)
    assert judge.metrics()["pairs"] == 3


def test_a_request_is_a_chat_completion_with_the_question() -> None:
    settings = {"system": "Be fair.", "extra_body": {"seed": 7, "max_tokens": 5}}
    _, _, server = judged(longer, [make_group(["yes", "no"])], **settings)
    assert set(server.paths) == {"/v1/chat/completions"}
    body = next(body for body in server.bodies if shown(body) == ("yes", "no"))
    question = body.pop("messages")
    assert body == {"model": "judge-1", "temperature": 0.0, "max_tokens": 5, "seed": 7}
    assert question[0] == {"role": "system", "content": "Be fair."}
    assert question[1]["role"] == "user"
    assert "<request>\nprompt 0\n</request>" in question[1]["content"]
    assert question[1]["content"].endswith("Reply with exactly one letter: A, B, or C if neither is better.")


def test_what_is_null_is_left_out_of_the_request() -> None:
    _, _, server = judged(longer, [make_group(["yes", "no"])], temperature=None, max_tokens=None)
    assert set(server.bodies[0]) == {"model", "messages"}


def test_a_template_of_ones_own_may_show_the_gold_answer_and_texts_are_no_templates() -> None:
    template = "{{ answer }}|<answer_a>\n{{ first }}\n</answer_a>\n<answer_b>\n{{ second }}\n</answer_b>"
    group = make_group(["{{ answer }} <b>", "no"], answer="gold")
    _, _, server = judged(longer, [group], template=template)
    assert {body["messages"][0]["content"].partition("|")[0] for body in server.bodies} == {"gold"}
    assert set(map(shown, server.bodies)) == {("{{ answer }} <b>", "no"), ("no", "{{ answer }} <b>")}


def test_chat_messages_are_shown_without_the_policys_template() -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    text = compile_template(PAIRS_TEMPLATE, "pairs").render(
        prompt="<|im_start|>", messages=messages, answer=None, first="a", second="b"
    )
    assert "<request>\nuser: Hi.\nassistant: Yes?\n</request>" in text
    assert "im_start" not in text


def test_equal_texts_tie_without_a_request() -> None:
    answers, judge, server = judged(longer, [make_group(["x", "xx", "x"]), make_group(["x", "x"], index=1)])
    assert sorted(map(shown, server.bodies)) == [("x", "xx"), ("xx", "x")]
    assert judge.metrics()["comparisons"] == 2
    assert [answer.preferences for answer in answers if isinstance(answer, Judgement)] == [
        ((0.5, 0.0, 0.5), (1.0, 0.5, 1.0), (0.5, 0.0, 0.5)),
        ((0.5, 0.5), (0.5, 0.5)),
    ]


# Verdicts.


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", "A"),
        ("b", "B"),
        (" C. ", "C"),
        ("**A**", "A"),
        ("[[B]]", "B"),
        ("Answer: A", "A"),
        ("Verdict: **B**", "B"),
        ("A is nice, but wrong.\nB", "B"),
        ("A\nNo:\nB", "B"),
        ("Banana", None),
        ("A and B", None),
        ("A/B", None),
        ("Answer A: a cat. Answer B: a dog.", None),
        ("I think A is better than B", None),
        ("A better answer is needed", None),
        ("AB", None),
        ("D", None),
        ("", None),
        ("\n" * 100_000, None),
    ],
)
def test_a_verdict_is_a_letter_on_a_line_of_its_own_the_last_one(text: str, verdict: str | None) -> None:
    assert verdict_of(text) == verdict


def test_a_pattern_of_ones_own_finds_the_verdict() -> None:
    assert verdict_of("[[A]], or rather [[C]] (A)", verdict_pattern=r"\[\[(\w)\]\]") == "C"
    assert verdict_of("[[Z]]", verdict_pattern=r"\[\[(\w)\]\]") is None


def likely(token: str, **top: float) -> dict[str, Any]:
    """A token of the log-probs with its likeliest ones, given by probability; `_A` stands for ` A`."""
    listed = [{"token": name.replace("_", " "), "logprob": math.log(p)} for name, p in top.items()]
    return {"token": token, "logprob": -0.1, "top_logprobs": listed}


def test_with_log_probs_both_orders_are_averaged_too() -> None:
    def script(n: int, body: Any) -> Any:
        assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        a, b = (0.9, 0.1) if shown(body) == ("x", "y") else (0.3, 0.7)
        return completion("A", logprobs={"content": [likely("A", A=a, B=b)]})

    answers, _, _ = judged(script, [make_group(["x", "y"])], use_logprobs=True)
    preferences = only(answers).preferences
    assert preferences is not None
    assert preferences[0][1] == pytest.approx((0.9 + (1 - 0.3)) / 2)
    assert preferences[0][1] + preferences[1][0] == 1.0


def test_an_endpoint_without_log_probs_is_told_how_to_do_without() -> None:
    answers, judge, _ = judged(longer, [make_group(["x", "xx"])], use_logprobs=True, request_retries=1)
    assert "set judging.judge.use_logprobs to false" in str(answers[0])
    assert judge.metrics()["garbage"] >= 1


# Abstentions.


def test_an_answer_without_verdict_counts_as_a_tie_and_is_counted() -> None:
    def script(n: int, body: Any) -> Any:
        return completion({("x", "y"): "A", ("y", "x"): "I cannot say"}.get(shown(body)))

    answers, judge, _ = judged(script, [make_group(["x", "y", "z"])])
    # x over y: (1 + 1/2) / 2; nothing was said of the other pairs.
    assert only(answers).preferences == ((0.5, 0.75, 0.5), (0.25, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert judge.metrics()["abstentions"] == 5
    assert judge.metrics()["pairs"] == 0


def test_a_group_on_which_every_answer_abstained_is_not_judged() -> None:
    answers, _, _ = judged(lambda n, body: completion("Hm."), [make_group(["x", "y"])])
    assert isinstance(answers[0], RunError)
    assert re.search(r"no verdict on prompt 'fake:0' in any of 2 answers.*verdict_pattern", str(answers[0]))


def test_an_abstention_may_fail_its_group_alone() -> None:
    def script(n: int, body: Any) -> Any:
        return completion("Hm.") if shown(body) == ("x", "y") else longer(n, body)

    groups = [make_group(["x", "y"]), make_group(["x", "yy"], index=1)]
    answers, judge, _ = judged(script, groups, abstention="fail")
    assert "no verdict on a pair of prompt 'fake:0'" in str(answers[0])
    assert isinstance(answers[1], Judgement)
    assert judge.metrics()["abstentions"] == 1


# Answers that were cut short, and reasoning.


@pytest.mark.parametrize(("reason", "count"), [("length", "cut_off"), ("content_filter", "filtered")])
def test_an_answer_that_was_cut_short_is_an_abstention_though_it_ends_in_a_letter(reason: str, count: str) -> None:
    """The last letter of an unfinished thought was the verdict."""

    def script(n: int, body: Any) -> Any:
        if shown(body) == ("x", "y"):
            return completion("At first sight the better one is\nA", finish_reason=reason)
        return completion("A")

    answers, judge, _ = judged(script, [make_group(["x", "y"])])
    assert only(answers).preferences == ((0.5, 0.25), (0.75, 0.5))
    metrics = judge.metrics()
    assert (metrics["abstentions"], metrics[count], metrics["pairs"], metrics["garbage"]) == (1, 1, 0, 0)


def test_when_all_answers_were_cut_short_the_group_fails_with_the_remedy() -> None:
    answers, _, _ = judged(lambda n, body: completion("A", finish_reason="length"), [make_group(["x", "y"])])
    assert re.search(r"no verdict .* in any of 2 answers \(2 stopped by .*max_tokens", str(answers[0]))


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 1}, {"max_tokens": None, "extra_body": {"max_completion_tokens": 1}}]
)
def test_an_answer_of_the_one_token_that_was_asked_for_is_whole(settings: Any) -> None:
    answers, judge, _ = judged(
        lambda n, body: completion("A" if shown(body) == ("x", "y") else "B", finish_reason="length"),
        [make_group(["x", "y"])],
        **settings,
    )
    assert only(answers).preferences == ((0.5, 1.0), (0.0, 0.5))
    assert judge.metrics()["abstentions"] == 0


def test_a_letter_in_the_reasoning_is_no_verdict() -> None:
    def script(n: int, body: Any) -> Any:
        if shown(body) == ("x", "y"):
            return completion("<think>Both say x. So\nB\nNo, wait.</think>\n\nA")
        _, _, content = answer = completion(None)
        content["choices"][0]["message"]["reasoning_content"] = "A"
        return answer

    answers, judge, _ = judged(script, [make_group(["x", "y"])])
    assert only(answers).preferences == ((0.5, 0.75), (0.25, 0.5))
    assert judge.metrics()["abstentions"] == 1


# Failures, counts and costs.


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        ((429, {"Retry-After": "0"}, b"later"), "rate_limited"),
        ((502, {}, b"<html>"), "server_errors"),
        ((200, {}, b"garbage"), "garbage"),
        ((200, {}, {"choices": []}), "garbage"),
        ((200, {}, {"error": {"message": "overloaded"}}), "garbage"),
        ((200, {}, {"choices": [{"message": {"content": 7}}]}), "garbage"),
        ((200, {}, {"choices": [{"finish_reason": "stop"}]}), "garbage"),
        ((200, {}, {"choices": {"0": {}}}), "garbage"),
        ((200, {}, {"choices": ["A"]}), "garbage"),
        ((200, {}, [1]), "garbage"),
        (None, "timeouts"),
    ],
)
def test_a_failing_endpoint_costs_a_group_only_after_its_retries_and_never_a_score(bad: Any, count: str) -> None:
    """One group meets the fault once and is judged; the other one meets it every time and comes back."""
    met: list[Any] = []

    def script(n: int, body: Any) -> Any:
        if "bad" in body["messages"][0]["content"]:
            return bad
        met.append(body)
        return bad if len(met) == 1 else longer(n, body)

    groups = [make_group(["x", "yy"]), make_group(["bad", "x"], index=1)]
    settings = {"request_retries": 2, "request_timeout_seconds": 0.3}
    answers, judge, _ = judged(script, groups, **settings)
    assert isinstance(answers[0], Judgement)
    assert answers[0].preferences == ((0.5, 0.0), (1.0, 0.5))
    assert isinstance(answers[1], RunError)
    assert "no answer in 3 attempts" in str(answers[1])
    assert judge.metrics()[count] >= 4
    assert judge.metrics()["given_up"] >= 1


def test_a_wrong_request_comes_back_in_the_servers_words_and_is_sent_once() -> None:
    answers, judge, _ = judged(lambda n, body: (404, {}, b"no model judge-1"), [make_group(["x", "y"])])
    assert isinstance(answers[0], UsageError)
    assert "status 404, a wrong request: no model judge-1" in str(answers[0])
    assert judge.metrics()["retries"] == 0


def test_the_cost_is_that_of_the_tokens_by_their_prices() -> None:
    _, judge, _ = judged(longer, [make_group(["x", "xx", "xxx"])], input_price=2.5, output_price=10.0)
    metrics = judge.metrics()
    assert (metrics["tokens_in"], metrics["tokens_out"]) == (600, 18)
    assert metrics["cost"] == pytest.approx(600 * 2.5e-6 + 18 * 10e-6)
    assert metrics["requests"] == metrics["answered"] == metrics["comparisons"] == 6
    assert metrics["unmetered"] == 0


def test_answers_whose_tokens_were_not_counted_are_counted_themselves() -> None:
    def script(n: int, body: Any) -> Any:
        status, headers, content = longer(n, body)
        return status, headers, {"choices": content["choices"]}

    _, judge, _ = judged(script, [make_group(["x", "xx"])])
    assert judge.metrics()["unmetered"] == 2
    assert judge.metrics()["tokens_in"] == 0


@pytest.mark.parametrize(
    "count",
    ["abc", [1], {"a": 1}, True, -(10**9), 10**400, -0.5, 1e30, b"1e999", b"NaN", b"9" * 5000, b"-" + b"9" * 5000],
)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_nonsensical_count_of_tokens_is_ignored_and_never_spoils_totals_or_verdict(name: str, count: Any) -> None:
    """Such a count ended the whole batch with a raw error, made the totals infinite, or the cost negative."""

    def script(n: int, body: Any) -> Any:
        status, headers, content = longer(n, body)
        if shown(body) == ("x", "xx"):
            content["usage"][name] = "HERE" if isinstance(count, bytes) else count
        sent = json.dumps(content).encode()
        return status, headers, sent.replace(b'"HERE"', count) if isinstance(count, bytes) else sent

    answers, judge, _ = judged(script, [make_group(["x", "xx"])], input_price=1.0, output_price=1.0)
    assert only(answers).preferences == ((0.5, 0.0), (1.0, 0.5))
    metrics = judge.metrics()
    assert (metrics["unmetered"], metrics["tokens_in"], metrics["tokens_out"]) == (1, 100, 3)
    assert metrics["cost"] == pytest.approx(103e-6)
    assert metrics["garbage"] == 0


def test_the_tokens_of_an_answer_of_no_use_are_paid_for_too() -> None:
    def script(n: int, body: Any) -> Any:
        return (
            completion("A") if n else (200, {}, {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 1}})
        )

    _, judge, _ = judged(script, [make_group(["x", "y"])], max_concurrent_requests=1)
    assert (judge.metrics()["tokens_in"], judge.metrics()["tokens_out"]) == (250, 7)


@pytest.mark.parametrize(
    ("logprob", "said"),
    [(math.nan, "nan"), (5.0, "5.0"), (math.inf, "inf"), ("-1", "-1"), (None, "None"), (True, "True")],
)
def test_a_log_prob_that_is_none_is_garbage_with_the_cause_and_asked_again(logprob: Any, said: str) -> None:
    """NaN and +5 counted as probability 1."""

    def script(n: int, body: Any) -> Any:
        listed = [{"token": "A", "logprob": logprob if n == 0 or bad else math.log(0.9)}]
        return completion("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": listed}]})

    bad, settings = False, {"use_logprobs": True, "request_retries": 1, "max_concurrent_requests": 1}
    answers, judge, _ = judged(script, [make_group(["x", "y"])], **settings)
    assert only(answers).preferences == ((0.5, 0.5), (0.5, 0.5))
    assert (judge.metrics()["garbage"], judge.metrics()["retries"]) == (1, 1)
    bad = True
    answers, _, _ = judged(script, [make_group(["x", "y"])], **settings)
    assert f"the log-prob of 'A' is {said}, not at most 0" in str(answers[0])


def test_no_more_requests_are_under_way_than_allowed_over_two_batches_at_a_time() -> None:
    def slow(n: int, body: Any) -> Any:
        time.sleep(0.01)
        return longer(n, body)

    async def two_batches(judge: EndpointJudge) -> None:
        batches = [[make_group([f"{k}", f"{k}x", f"{k}xx"], index=k)] for k in range(2)]
        await asyncio.gather(*[judge.judge(batch) for batch in batches])

    with FakeServer(slow) as server:
        config = EndpointJudgeConfig(url=server.url, model="m", max_concurrent_requests=2)
        asyncio.run(two_batches(EndpointJudge(config)))
    assert len(server.bodies) == 12
    assert server.most_at_a_time == 2


def test_a_batch_that_ran_out_of_time_asks_only_for_what_it_does_not_know_yet() -> None:
    """Answers cost money: those that came before the time was over are kept for the next attempt."""

    def script(n: int, body: Any) -> Any:
        return None if n == 11 else longer(n, body)

    async def attempts(judge: EndpointJudge) -> list[Group | Failure]:
        limits = JudgingConfig(timeout_seconds=1.0, retries=1, retry_backoff_seconds=0.0)
        return await JudgeWorker(limits, judge=judge).judge(groups)

    groups = [make_group([f"{k}", f"{k}x", f"{k}xx"], index=k) for k in range(2)]
    with FakeServer(script) as server:
        config = EndpointJudgeConfig(url=server.url, model="m", max_concurrent_requests=1)
        judge = EndpointJudge(config)
        results = asyncio.run(attempts(judge))
    assert all(isinstance(result, Group) for result in results)
    assert len(server.bodies) == 13
    assert judge.metrics()["remembered"] == 11
    assert judge.metrics()["verdicts"] == 12
    assert (judge.metrics()["pairs"], judge.metrics()["first_place_groups"]) == (6, 2)


def test_a_worker_counts_groups_and_those_that_came_back_without_a_judgement() -> None:
    def script(n: int, body: Any) -> Any:
        return (400, {}, b"too long") if "bad" in json.dumps(body) else longer(n, body)

    with FakeServer(script) as server:
        endpoint = EndpointJudgeConfig(
            url=server.url, model="m", request_timeout_seconds=5.0, request_retries=1, longest_pause_seconds=1.0
        )
        worker = JudgeWorker(JudgingConfig(judge=endpoint, timeout_seconds=20.0))
        groups = [make_group(["x", "xx"]), make_group(["bad", "x"], index=1), make_group(["x", "xxx"], index=2)]
        results = asyncio.run(worker.judge(groups))
    figures = asyncio.run(worker.figures())
    assert [type(result) for result in results] == [Group, Failure, Group]
    assert (figures["groups"], figures["failed_groups"]) == (3, 1)
    assert figures["refused"] >= 1
    assert figures["answered"] == 4


# What is refused before anything is asked.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{{ first"}, r"judging\.judge\.template is not a Jinja template: line 1"),
        ({"template": "{{ first }} {{ prompt }}"}, r"with mode pairs it must use first and second"),
        ({"template": "{{ first }} {{ second }} {{ question }}"}, r"uses \['first', 'question', 'second'\]"),
        ({"verdict_pattern": "(["}, r"judging\.judge\.verdict_pattern '\(\[' is not a regular expression"),
        ({"verdict_pattern": "[ABC]"}, r"has no group; put the answer in parentheses"),
        ({"api_key_env": "OFFBEAT_TEST_NO_SUCH_KEY"}, r"OFFBEAT_TEST_NO_SUCH_KEY, and that variable is not set"),
    ],
)
def test_a_mistake_in_the_settings_is_found_when_the_judge_is_made(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EndpointJudge(EndpointJudgeConfig(url="http://h", model="m", **settings))


def test_a_template_that_fails_on_a_prompt_fails_that_prompt_alone() -> None:
    group = make_group(["x", "y"])
    prompt = Prompt("p:7", (1,), "text", metadata={"messages": [{"role": "user", "content": "Hi"}]})
    object.__setattr__(group.lease, "prompt", prompt)
    template = "{{ messages[0].content }}{{ messages[0].missing }} {{ first }} {{ second }}"
    answers, _, server = judged(longer, [group], template=template)
    assert "cannot be filled in for prompt 'p:7'" in str(answers[0])
    assert server.bodies == []


def test_a_batch_must_have_time_for_one_request_with_its_retries() -> None:
    judge = EndpointJudgeConfig(url="http://h", model="m")
    assert judge.longest_request_seconds == 4 * 30 + 3 * 20
    with pytest.raises(ValueError, match=r"timeout_seconds 60 is below the 180 s .* endpoint .* raise timeout_seconds"):
        JudgingConfig(judge=judge, timeout_seconds=60)
    assert JudgingConfig(judge=judge).timeout_seconds == 180
