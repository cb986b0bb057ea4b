"""Requests to a server of this machine: what is retried, what is counted, and that the key goes nowhere else."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.judges.config import EndpointJudgeConfig, HttpJudgeConfig
from actors.judges.http.client import GivenUpError, HttpClient, retry_after_seconds
from tests.fakes.judges import FakeServer

KEY = "sk-very-secret-0123456789"
OK = (200, {}, {"n": 1})


class Posted:
    """What came of some requests, and what the client counted and slept."""

    def __init__(self, script: Any, count: int = 1, key: str | None = None, **settings: Any) -> None:
        async def no_sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        async def post_all() -> list[Any]:
            async with self.client.session() as session:
                posts = [
                    self.client.post(session, "/path", {"ask": i}, lambda answer: answer["n"]) for i in range(count)
                ]
                return await asyncio.gather(*posts, return_exceptions=True)

        self.pauses: list[float] = []
        with FakeServer(script) as server:
            variable = None if key is None else "JUDGE_KEY"
            config = HttpJudgeConfig(url=server.url, model="m", api_key_env=variable, **settings)
            self.client = HttpClient(config, environ={"JUDGE_KEY": key or ""}, sleep=no_sleep)
            self.answers = asyncio.run(post_all())
        self.server = server

    @property
    def counted(self) -> dict[str, float]:
        """Counts that are not zero."""
        return {name: value for name, value in self.client.counts.metrics().items() if value and "latency" not in name}


def test_an_answer_is_read_and_its_latency_measured() -> None:
    posted = Posted(lambda n, body: (time.sleep(0.05), OK)[1])
    assert posted.answers == [1]
    assert posted.server.bodies == [{"ask": 0}]
    assert posted.server.paths == ["/path"]
    assert posted.counted == {"requests": 1, "answered": 1}
    metrics = posted.client.counts.metrics()
    assert 0.05 <= metrics["latency_mean_seconds"] == metrics["latency_max_seconds"] < 5.0


def test_mean_and_largest_latency_are_of_all_answers() -> None:
    posted = Posted(lambda n, body: (time.sleep(0.2 * (body["ask"] == 0)), OK)[1], count=4, max_concurrent_requests=1)
    metrics = posted.client.counts.metrics()
    # One of four is slow.
    assert metrics["latency_max_seconds"] >= 0.2
    assert metrics["latency_max_seconds"] / 4 <= metrics["latency_mean_seconds"] < metrics["latency_max_seconds"] / 2


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        ((429, {}, {"error": "slow down"}), "rate_limited"),
        ((500, {}, {"error": "oops"}), "server_errors"),
        ((503, {}, b""), "server_errors"),
        ((408, {}, b""), "server_errors"),
        ((200, {}, b"<html>not json</html>"), "garbage"),
        ((200, {}, b"\xff\xfe"), "garbage"),
        ((200, {}, b""), "garbage"),
        ((200, {}, {"m": 1}), "garbage"),
        ((200, {}, [1]), "garbage"),
        ((200, {}, b"[" * 100_000), "garbage"),
        ((200, {"Content-Type": "text/plain"}, b"null"), "garbage"),
    ],
)
def test_what_a_later_try_may_not_meet_is_tried_again_and_counted(bad: Any, count: str) -> None:
    posted = Posted(lambda n, body: bad if n < 2 else OK)
    assert posted.answers == [1]
    assert posted.counted == {"requests": 3, "answered": 1, "retries": 2, count: 2}


def test_a_server_that_closes_the_connection_is_asked_again() -> None:
    posted = Posted(lambda n, body: (200, {"Transfer-Encoding": "chunked"}, b"zz") if n == 0 else OK)
    assert posted.answers == [1]
    assert posted.counted == {"requests": 2, "answered": 1, "retries": 1, "server_errors": 1}


def test_silence_ends_after_the_time_limit_of_each_try() -> None:
    started = time.monotonic()
    posted = Posted(lambda n, body: None, request_timeout_seconds=0.1, request_retries=1)
    assert time.monotonic() - started < 20.0
    assert posted.counted == {"requests": 2, "timeouts": 2, "retries": 1, "given_up": 1}
    assert isinstance(posted.answers[0], RunError)
    assert "/path: no answer in 2 attempts of 0.1 s; the last: no answer within 0.1 s; check" in str(posted.answers[0])


def test_where_nothing_listens_the_request_is_given_up_with_the_reason() -> None:
    async def post() -> Any:
        async with client.session() as session:
            return await client.post(session, "", {}, lambda answer: answer)

    client = HttpClient(HttpJudgeConfig(url="http://127.0.0.1:1", model="m", request_retries=0))
    with pytest.raises(RunError, match=r"no answer in 1 attempts .*Cannot connect to host 127\.0\.0\.1:1"):
        asyncio.run(post())
    assert client.counts.server_errors == client.counts.given_up == 1


def test_pauses_are_doubled_each_time_and_never_longer_than_allowed() -> None:
    settings: dict[str, Any] = {"request_retries": 4, "request_backoff_seconds": 2.0, "longest_pause_seconds": 10.0}
    pauses = Posted(lambda n, body: (500, {}, b""), **settings).pauses
    assert len(pauses) == 4
    for pause, whole in zip(pauses, (2.0, 4.0, 8.0, 16.0), strict=True):
        assert whole / 2 <= pause <= min(whole, 10.0)


def test_the_pause_that_a_server_asks_for_is_kept() -> None:
    posted = Posted(lambda n, body: (429, {"Retry-After": "7"}, b"") if n == 0 else OK)
    assert posted.answers == [1]
    assert posted.pauses == [7.0]


def test_a_server_that_asks_for_too_long_a_pause_is_given_up_at_once() -> None:
    posted = Posted(lambda n, body: (429, {"Retry-After": "3600"}, b"") if n == 0 else OK)
    assert posted.pauses == []
    assert posted.counted == {"requests": 1, "rate_limited": 1, "given_up": 1}
    assert "asks to wait 3600 s, more than longest_pause_seconds 20" in str(posted.answers[0])


def test_a_pause_may_be_given_as_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert retry_after_seconds({"Retry-After": format_datetime(later, usegmt=True)}) == pytest.approx(100, abs=3)
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after_seconds({"Retry-After": "soon"}) is None
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "soon"}) == 0.0
    assert retry_after_seconds({}) is None


def test_a_pause_until_a_date_counts_from_the_server_s_own_date_whatever_this_host_s_clock_says() -> None:
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT"}
    assert retry_after_seconds(headers) == 9.0


@pytest.mark.parametrize("when", ["21 Oct 99999999999999 07:28:00 GMT", "21 Oct 2026 07:28:00 +99999999999999"])
def test_a_date_that_cannot_be_is_no_pause(when: str) -> None:
    """Such a header ended the whole batch with a raw error."""
    posted = Posted(lambda n, body: (429, {"Retry-After": f"Wed, {when}"}, b"") if n == 0 else OK)
    assert posted.answers == [1]
    assert posted.counted == {"requests": 2, "answered": 1, "retries": 1, "rate_limited": 1}


@pytest.mark.parametrize("error", [KeyError("n"), IndexError(), TypeError(), OverflowError(), AttributeError()])
def test_whatever_reading_an_answer_raises_makes_it_garbage(error: Exception) -> None:
    def read(answer: Any) -> Any:
        raise error

    async def post() -> None:
        async with client.session() as session:
            await client.post(session, "", {}, read)

    with FakeServer(lambda n, body: OK) as server:
        client = HttpClient(HttpJudgeConfig(url=server.url, model="m", request_retries=1, request_backoff_seconds=0.0))
        with pytest.raises(GivenUpError, match=type(error).__name__) as caught:
            asyncio.run(post())
    assert caught.value.cause is error
    assert client.counts.garbage == 2


def test_a_whole_number_of_thousands_of_digits_does_not_spoil_the_answer_around_it() -> None:
    """Python refuses to read one of more than 4,300 digits."""
    posted = Posted(lambda n, body: (200, {}, b'{"n": 1, "m": ' + b"9" * 5000 + b"}"))
    assert posted.answers == [1]


@pytest.mark.parametrize("status", [400, 404, 422, 301, 204])
def test_a_wrong_request_is_not_tried_again(status: int) -> None:
    posted = Posted(lambda n, body: (status, {"Location": "http://127.0.0.1:1"}, b"" if status == 204 else b"no model"))
    assert isinstance(posted.answers[0], UsageError)
    assert f"/path: status {status}" in str(posted.answers[0])
    assert ("no model" in str(posted.answers[0])) == (status >= 400)
    assert posted.counted == {"requests": 1, "refused": 1}


def test_no_more_requests_are_under_way_than_allowed() -> None:
    posted = Posted(lambda n, body: (time.sleep(0.02), OK)[1], count=24, max_concurrent_requests=3)
    assert posted.answers == [1] * 24
    assert posted.server.most_at_a_time == 3


def test_one_failing_request_leaves_the_others_alone() -> None:
    posted = Posted(lambda n, body: (400, {}, b"") if body["ask"] == 1 else OK, count=3)
    assert posted.answers[::2] == [1, 1]
    assert isinstance(posted.answers[1], UsageError)


# The key.


def echoing(status: int) -> Any:
    """A server that repeats what it was sent, the key included, in its body and in a header."""

    def script(n: int, body: Any) -> Any:
        said = f"you sent Authorization: Bearer {KEY} " * 40
        return status, {"X-Echo": KEY, "Retry-After": "0"}, said.encode()

    return script


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 429, 500])
def test_the_key_is_sent_and_shows_up_nowhere_else(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        posted = Posted(echoing(status), key=KEY)
    assert {headers["Authorization"] for headers in posted.server.headers} == {f"Bearer {KEY}"}
    error = posted.answers[0]
    assert isinstance(error, RunError | UsageError)
    shown = [caplog.text, repr(error), "".join(traceback.format_exception(error)), repr(posted.client)]
    shown += [repr(posted.client.counts), repr(posted.counted)]
    while error is not None:  # what a debugger or a pickle would follow
        shown.append(repr(vars(error)))
        error = error.__cause__ or error.__context__
    assert not [text for text in shown if KEY in text or KEY[:12] in text]


def test_a_key_at_the_edge_of_what_is_quoted_is_not_cut_in_half() -> None:
    posted = Posted(lambda n, body: (400, {}, ("x" * 290 + KEY).encode()), key=KEY)
    assert "sk-very" not in str(posted.answers[0])


@pytest.mark.parametrize("part", [KEY[:6], KEY[:10], KEY[-8:], KEY])
def test_a_part_of_the_key_in_an_answer_is_masked_and_what_a_terminal_obeys_is_escaped(part: str) -> None:
    posted = Posted(lambda n, body: (400, {}, f"\x1b[2Jno such key: {part}***, \u202e".encode()), key=KEY)
    assert str(posted.answers[0]).endswith(r"a wrong request: \x1b[2Jno such key: [key]***, \u202e")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable_and_the_answer_is_not_quoted(status: int) -> None:
    """Endpoints repeat parts of a wrong key."""
    posted = Posted(lambda n, body: (status, {}, b"Incorrect API key provided: sk-very-*****6789"), key=KEY)
    assert str(posted.answers[0]).endswith(f"status {status}: the server refused the key in JUDGE_KEY")
    assert "set api_key_env" in str(Posted(lambda n, body: (status, {}, b"")).answers[0])


def test_without_a_variable_no_key_is_sent() -> None:
    assert "Authorization" not in Posted(lambda n, body: OK).server.headers[0]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_an_error_that_names_it(value: str | None) -> None:
    environ = {} if value is None else {"JUDGE_KEY": value}
    config = HttpJudgeConfig(url="http://h", model="m", api_key_env="JUDGE_KEY")
    with pytest.raises(UsageError, match="api_key_env names JUDGE_KEY, and that variable is not set"):
        HttpClient(config, environ=environ)


@pytest.mark.parametrize(
    "value", [f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel"]
)
def test_what_cannot_be_a_key_is_refused_without_being_shown(value: str) -> None:
    config = HttpJudgeConfig(url="http://h", model="m", api_key_env="JUDGE_KEY")
    with pytest.raises(UsageError, match="the variable JUDGE_KEY holds no key") as refused:
        HttpClient(config, environ={"JUDGE_KEY": value})
    assert value[:5] not in str(refused.value)


# Its configuration.


@pytest.mark.parametrize(
    "url", ["h:8000", "ftp://h", "http://", "http://user:pass@h", "https://h/v1?key=1", "https://h/v1#key", ""]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be http://HOST|must hold no user"):
        EndpointJudgeConfig(url=url, model="m")


def test_an_address_may_end_with_a_slash() -> None:
    assert EndpointJudgeConfig(url="https://h/v1/", model="m").url == "https://h/v1"


def test_the_longest_request_is_every_try_and_every_pause() -> None:
    config = HttpJudgeConfig(
        url="http://h", model="m", request_timeout_seconds=10, request_retries=2, longest_pause_seconds=5
    )
    assert config.longest_request_seconds == 10 + 5 + 10 + 5 + 10
