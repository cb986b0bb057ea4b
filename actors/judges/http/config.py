"""Settings of the judges behind HTTP. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from actors.redaction import redact, secret_names
from actors.settings import Settings, item_mistakes


def _port_of(parts: SplitResult) -> int | None:
    """Return the port of a URL, or its scheme's default port; None if the URL's port is invalid."""
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None


PAIR_PATTERN = r"(?im)^[^\w\n]*(?:(?:answer|verdict)[^\w\n]*)?([ABC])[^\w\n]*$"
SCORE_PATTERN = (
    r"(?im)^[^\w\n/]*(?:(?:final )?(?:score|rating|answer|verdict)\b[^\w\n/]*)?"
    r"(?<![-+.])([-+]?[0-9]+(?:\.[0-9]+)?)(?:\s*/\s*(?P<of>[0-9]+(?:\.[0-9]+)?))?[^\w\n%]*$"
)


class HttpJudgeConfig(Settings):
    """Settings shared by judges behind HTTP: the server, its key, time limits, retries and concurrency."""

    url: str = Field(description="address of the server, `http://` or `https://`, without key, query and fragment")
    model: str = Field(description="name of the model on the server")
    api_key_env: str | None = Field(
        default=None,
        description="NAME of the environment variable with the key, read where the judge runs. Unset: no key is sent",
    )
    max_concurrent_requests: int = Field(default=16, ge=1, description="requests in flight at a time")
    request_timeout_seconds: float = Field(default=30.0, gt=0.0, description="seconds per attempt of a request")
    request_retries: int = Field(
        default=3, ge=0, description="retries after 408, 425, 429, 5xx, timeouts, broken connections and garbage"
    )
    request_backoff_seconds: float = Field(
        default=1.0, ge=0.0, description="seconds before the first retry, doubled each time, with jitter down to half"
    )
    longest_pause_seconds: float = Field(
        default=20.0, gt=0.0, description="longest pause before a retry; a longer Retry-After fails the request"
    )

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            meant = f"; write http://{url}" if re.fullmatch(r"[\w.-]+(:[0-9]+)?(/[\w./-]*)?", url) else ""
            raise ValueError(
                f"given {redact(url)!r}, must be http://HOST[:PORT][/PATH] or https://..., without query and "
                f"fragment{meant}"
            )
        if _port_of(parts) is None:
            raise ValueError(f"given {redact(url)!r}; a port must be a number from 1 to 65535; correct it")
        if parts.username is not None or parts.password is not None or redact(url) != url:
            raise ValueError("must hold no user or password; put the key into an environment variable, see api_key_env")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        # The value is not shown: it may be a key, put here by mistake.
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("must be the NAME of an environment variable, in capitals; the key itself never goes here")
        return name

    @property
    def longest_request_seconds(self) -> float:
        """Longest time for one request with all its attempts and pauses (seconds)."""
        pauses = self.request_retries * self.longest_pause_seconds
        return self.request_timeout_seconds * (1 + self.request_retries) + pauses


class Criterion(Settings):
    """One criterion of a rubric."""

    name: str = Field(
        pattern=r"^[A-Za-z]([A-Za-z0-9 _-]{0,62}[A-Za-z0-9])?$",
        description="letters, digits and, between them, spaces, `_` and `-`; 64 at most",
    )
    description: str = Field(default="", description="what a completion has to be for the highest score")
    weight: float = Field(default=1.0, gt=0.0, description="weight in the mean, relative to the other criteria's")


class EndpointJudgeConfig(HttpJudgeConfig):
    """A language model behind an OpenAI-compatible endpoint that compares completions, or scores each."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="base URL of the API, such as https://api.openai.com/v1")
    mode: Literal["pairs", "score", "rubric"] = Field(
        default="pairs",
        description="what is asked: `pairs`, which of two completions is better, in both orders; `score`, how good one "
        "is; `rubric`, how well one meets each of criteria",
    )
    scale: tuple[float, float] = Field(
        default=(1.0, 10.0), description="lowest and highest score, with mode score or rubric"
    )
    criteria: tuple[Criterion, ...] = Field(
        default=(), description="with mode rubric: one or more of `{name: ..., description: ..., weight: ...}`"
    )
    structured: Literal["auto", "on", "off"] = Field(
        default="off",
        description="ask for JSON of the right shape by `response_format`: `auto`, until the server refuses that. "
        "Unset: off for pairs, auto for score and rubric",
    )
    system: str | None = Field(default=None, description="system message; unset: none")
    template: str | None = Field(
        default=None,
        description="Jinja template of the user message, with `prompt`, `messages`, `answer` and what is judged: "
        "`first` and `second`, or `completion`, `low`, `high` and `criteria`; "
        "unset: the mode's in actors/judges/http/questions.py",
    )
    verdict_pattern: str = Field(
        default=PAIR_PATTERN,
        description="regular expression; group 1 of its last match is the verdict: A first, B second, C neither; with "
        "mode score the number. Not for rubric",
    )
    use_logprobs: bool = Field(
        default=False, description="read probabilities from the log-probs of the verdict token, instead of 1, 0 and 1/2"
    )
    abstention: Literal["tie", "fail"] = Field(
        default="tie",
        description="an answer without a verdict: `tie` counts it as 1/2, a score as the mean of the group's others; "
        "`fail` fails the group",
    )
    temperature: float | None = Field(default=0.0, ge=0.0, description="of the judging model; null omits it")
    max_tokens: int | None = Field(
        default=16, ge=1, description="tokens per answer; null omits it. Unset: 16 for pairs, 256 for score and rubric"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="more fields of the request body; they override the judge's own"
    )
    input_price: float = Field(default=0.0, ge=0.0, description="price per million input tokens, in any currency")
    output_price: float = Field(default=0.0, ge=0.0, description="price per million output tokens, same currency")

    @field_validator("criteria", mode="wrap")
    @classmethod
    def _mistakes_name_their_criterion(cls, criteria: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(criteria)
        except ValidationError as error:
            raise ValueError(item_mistakes(error, "criterion")) from None

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_its_mode(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping) or settings.get("mode") not in ("score", "rubric"):
            return settings
        # A pattern for letters finds no number: it is left from a configuration of another mode.
        given = {name: value for name, value in settings.items() if value != PAIR_PATTERN}
        return {"structured": "auto", "max_tokens": 256, "verdict_pattern": SCORE_PATTERN} | given

    @model_validator(mode="after")
    def _settings_fit_the_mode(self) -> EndpointJudgeConfig:
        low, high = self.scale
        if not low < high:
            raise ValueError(f"scale [{low:g}, {high:g}] must go from a lower to a higher score")
        if (self.mode == "rubric") != bool(self.criteria):
            raise ValueError(
                f"mode {self.mode} with {len(self.criteria)} criteria: mode rubric needs one or more, the others none"
            )
        names = [criterion.name.casefold() for criterion in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"the criteria {', '.join(names)} must have different names")
        if self.use_logprobs and (self.mode != "pairs" or self.structured != "off"):
            raise ValueError(
                f"use_logprobs reads the letter of a comparison; with mode {self.mode} and structured "
                f"{self.structured} there is none: set mode pairs and structured off, or use_logprobs false"
            )
        return self

    @field_validator("extra_body")
    @classmethod
    def _holds_no_secret(cls, body: dict[str, Any]) -> dict[str, Any]:
        # The value is not shown, and the configuration is saved with the run.
        for name in secret_names(body, unnamed=True):
            raise ValueError(
                f"must hold no secret, and {name} looks like one; put a key into an environment variable and name that "
                "in api_key_env"
            )
        return body


class ServedRewardModelJudgeConfig(HttpJudgeConfig):
    """A reward model served by vLLM (`vllm serve MODEL --runner pooling`), at its `/classify`."""

    kind: Literal["served"] = "served"
    url: str = Field(description="address of the server, such as http://127.0.0.1:8000, without /v1")
    tokenizer: str | None = Field(
        default=None, description="directory or hub name of the reward model's tokenizer; unset: `model`"
    )
