"""Send JSON over HTTP for judges, with retries, a concurrency limit and counts. Must not know the questions.

The key is read from the environment, sent in one header, and removed from every text that leaves this module.
"""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp

from actors.errors import RunError, UsageError
from actors.foreign.text import shown
from actors.judges.config import HttpJudgeConfig
from actors.redaction import without_key

T = TypeVar("T")

MISREAD = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
"""Errors that reading a foreign answer may raise; the answer then counts as garbage."""
LONGEST_WHOLE = 400  # digits of a whole number; Python refuses to read thousands
RETRIED = (408, 425, 429)  # statuses below 500 that are worth a retry
LARGEST_ANSWER = 16 << 20  # bytes; a longer answer counts as garbage
QUOTED = 16 << 10  # bytes of an answer from which an error may quote
EXCERPT = 300  # characters of an answer quoted in an error


class _AttemptError(Exception):
    """A failed attempt that is worth a retry."""

    def __init__(
        self, reason: str, count: str, retry_after: float | None = None, cause: Exception | None = None
    ) -> None:
        super().__init__(reason)
        self.count = count  # the field of `RequestCounts` to add to
        self.retry_after = retry_after  # pause that the server asks for (seconds)
        self.cause = cause  # error of reading the answer


class RefusedError(UsageError):
    """The server refused the request itself."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class GivenUpError(RunError):
    """No attempt succeeded."""

    def __init__(self, text: str, cause: Exception | None) -> None:
        super().__init__(text)
        self.cause = cause
        """Error of reading the last answer; None if the last attempt got no answer."""


@dataclass
class RequestCounts:
    """Outcomes of all attempts. `requests` is the sum of the next six counts and of cancelled attempts."""

    requests: int = 0
    answered: int = 0
    rate_limited: int = 0
    timeouts: int = 0
    garbage: int = 0
    """Answers that are not JSON or not of the expected shape."""
    server_errors: int = 0  # 5xx, 408, 425 and broken connections
    refused: int = 0  # other statuses: wrong requests, not retried
    retries: int = 0
    given_up: int = 0  # requests without an answer after their last attempt
    latency_sum: float = field(default=0.0, repr=False)
    latency_max: float = 0.0  # of answered attempts (seconds)

    def metrics(self) -> dict[str, float]:
        """Return the counts by name, and latencies in seconds."""
        counted = {name: float(value) for name, value in vars(self).items() if not name.startswith("latency")}
        mean = self.latency_sum / self.answered if self.answered else 0.0
        return counted | {"latency_mean_seconds": mean, "latency_max_seconds": self.latency_max}


class HttpClient:
    """Posts JSON to one server. One client belongs to one event loop."""

    def __init__(
        self,
        config: HttpJudgeConfig,
        *,
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Read the key. Raises UsageError if `api_key_env` names a variable that is unset or holds no key."""
        self._config = config
        self._key = _key(config.api_key_env, environ)
        self._sleep = sleep
        self._slots = asyncio.Semaphore(config.max_concurrent_requests)
        self.counts = RequestCounts()

    def session(self) -> aiohttp.ClientSession:
        """Return the connections for one batch, as an asynchronous context manager."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self._config.request_timeout_seconds)
        connector = aiohttp.TCPConnector(limit=0)  # the slots are the limit
        return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)

    async def post(
        self, session: aiohttp.ClientSession, path: str, body: Mapping[str, Any], read: Callable[[Any], T]
    ) -> T:
        """Post `body` as JSON to the configured URL + `path`, with retries, and return `read(answer)`.

        If `read` raises one of `MISREAD`, the answer has the wrong shape: it counts as garbage, and the request is
        sent again. Raises GivenUpError if no attempt succeeds, RunError if the server asks for too long a pause,
        RefusedError if it refuses the request itself, so that no retry would help.
        """
        config, url = self._config, f"{self._config.url}{path}"
        # The slot is kept during pauses, so that an overloaded server gets fewer requests.
        async with self._slots:
            for attempt in range(1 + config.request_retries):
                self.counts.retries += attempt > 0
                self.counts.requests += 1
                try:
                    return await self._try(session, url, body, read)
                except _AttemptError as error:
                    setattr(self.counts, error.count, getattr(self.counts, error.count) + 1)
                    failure = error
                if attempt == config.request_retries:
                    break
                if failure.retry_after is not None and failure.retry_after > config.longest_pause_seconds:
                    self.counts.given_up += 1
                    raise RunError(
                        f"{url}: {failure}; it asks to wait {failure.retry_after:g} s, more than longest_pause_seconds "
                        f"{config.longest_pause_seconds:g}; lower max_concurrent_requests or raise "
                        "longest_pause_seconds"
                    )
                await self._sleep(self._pause(attempt, failure.retry_after))
            self.counts.given_up += 1
            raise GivenUpError(
                f"{url}: no answer in {1 + config.request_retries} attempts of {config.request_timeout_seconds:g} s; "
                f"the last: {failure}; check that the server runs, or raise request_timeout_seconds or request_retries",
                failure.cause,
            )

    async def _try(
        self, session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], read: Callable[[Any], T]
    ) -> T:
        started = asyncio.get_running_loop().time()
        try:
            # A redirect would send the key elsewhere.
            async with session.post(url, json=body, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                content = await _read_body(response)
        except TimeoutError:
            seconds = self._config.request_timeout_seconds
            raise _AttemptError(f"no answer within {seconds:g} s", "timeouts") from None
        except (aiohttp.ClientError, OSError) as error:
            # No exception chain: some of aiohttp's errors carry the request's headers.
            text = shown(self._without_key(f"{type(error).__name__}: {error}"), EXCERPT)
            raise _AttemptError(text, "server_errors") from None
        excerpt = self._excerpt(content)
        if status in RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            count = "rate_limited" if status == HTTPStatus.TOO_MANY_REQUESTS else "server_errors"
            raise _AttemptError(f"status {status}: {excerpt}", count, retry_after_seconds(headers))
        if status != HTTPStatus.OK:
            self.counts.refused += 1
            raise RefusedError(self._refusal(url, status, excerpt), status)
        try:
            answer = read(json.loads(content, parse_int=_whole))
        except MISREAD as error:
            said = shown(self._without_key(f"{type(error).__name__}: {error}"), EXCERPT)
            raise _AttemptError(f"unreadable answer ({said}): {excerpt}", "garbage", cause=error) from None
        seconds = asyncio.get_running_loop().time() - started
        self.counts.answered += 1
        self.counts.latency_sum += seconds
        self.counts.latency_max = max(self.counts.latency_max, seconds)
        return answer

    def _pause(self, attempt: int, retry_after: float | None) -> float:
        """Return the pause before the next attempt (seconds): exponential, with jitter so that retries spread out."""
        config = self._config
        backoff = config.request_backoff_seconds * 2**attempt * random.uniform(0.5, 1.0)
        return max(min(backoff, config.longest_pause_seconds), retry_after or 0.0)

    def _refusal(self, url: str, status: int, excerpt: str) -> str:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # The answer is not quoted: servers repeat parts of the key here.
            name = self._config.api_key_env
            wanted = f"the key in {name}" if name else "a request without a key; set api_key_env"
            return f"{url}: status {status}: the server refused {wanted}"
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return f"{url}: status {status}: redirects are not followed; set url to the address that it points to"
        return f"{url}: status {status}, a wrong request: {excerpt}"

    def _excerpt(self, content: bytes) -> str:
        """Return the beginning of an answer, made safe to show."""
        # The key is removed before any cut, so that no part of it is left.
        text = self._without_key(content[:QUOTED].decode("utf-8", errors="replace"))
        return shown(" ".join(text.split()), EXCERPT)

    def _without_key(self, text: str) -> str:
        return without_key(text, self._key, "[key]")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the pause that `Retry-After` asks for (seconds; the header may hold a date); None without one."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    if (when := _date(text)) is None:
        return None
    # By the server's clock, because this host's may be an hour off.
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (when - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return when.replace(tzinfo=when.tzinfo or UTC)


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, cut soon after `LARGEST_ANSWER` bytes."""
    content = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        content += chunk
        if len(content) > LARGEST_ANSWER:
            break
    return bytes(content)


def _whole(digits: str) -> int | float:
    """Read a whole number of JSON; infinity, which readers refuse if it matters, if it has too many digits."""
    return int(digits) if len(digits) <= LONGEST_WHOLE else float(digits)


def _key(name: str | None, environ: Mapping[str, str]) -> str:
    """Return the key in the variable `name`; empty if `name` is None."""
    if name is None:
        return ""
    key = environ.get(name, "").strip()
    if not key:
        raise UsageError(
            f"api_key_env names {name}, and that variable is not set where the judge runs; set it before starting Ray "
            "there (see docs/judges.md), or leave api_key_env unset for a server without keys"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"the variable {name} holds no key: a key has no spaces, line breaks or special characters")
    return key
