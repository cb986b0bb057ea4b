"""Settings of the judges, one model per kind. What all kinds share is `JudgingConfig` in `config.py`.

Light by law, as `config.py`: importing this module must not import torch, ray, vllm or transformers.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from actors.redaction import secret_names
from actors.settings import Settings


class GoldJudgeConfig(Settings):
    """The embedded world's closed-form preference."""

    kind: Literal["gold"] = "gold"


class BradleyTerryJudgeConfig(Settings):
    """The embedded world's Bradley-Terry model: the rewards that best explain its preference on the corpus's pairs."""

    kind: Literal["bradley_terry"] = "bradley_terry"


class RewardModelJudgeConfig(Settings):
    """A Bradley-Terry reward model: any Hugging Face sequence-classification directory with one label."""

    kind: Literal["reward_model"] = "reward_model"
    path: str = Field(description="directory or hub name of the model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights of the judge")
    batch_tokens: int = Field(default=16384, ge=1, description="padded tokens per forward pass")
    gpus: float = Field(default=0.0, ge=0.0, description="GPUs that the judge actor reserves from Ray")


class PreferenceModelJudgeConfig(Settings):
    """A preference model that `offbeat preference` has trained: Bradley-Terry, pairwise or skew-symmetric."""

    kind: Literal["preference_model"] = "preference_model"
    path: str = Field(description="directory or hub name of the model, with its preference.json")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights of the judge")
    batch_tokens: int = Field(default=16384, ge=1, description="padded tokens per forward pass")
    gpus: float = Field(default=0.0, ge=0.0, description="GPUs that the judge actor reserves from Ray")


class VerifierJudgeConfig(Settings):
    """Exact-answer match, in the GSM8K format by default: 1 for the right final answer, 0 otherwise."""

    kind: Literal["verifier"] = "verifier"
    format: Literal["pattern", "boxed"] = Field(
        default="pattern",
        description=r"where the final answer is: `pattern`, as answer_pattern says; `boxed`, the last \boxed{...}",
    )
    answer_pattern: str = Field(
        default=r"####\s*([^\n]+)",
        description="regular expression; group 1 of its last match is the final answer. With format boxed it is read "
        "in gold answers alone, where these have no box",
    )
    format_score: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="score of a wrong answer in the right format; 0 without the format"
    )


class FunctionJudgeConfig(Settings):
    """A Python function: `f(prompt: Prompt, completions: Sequence[Completion])`, plain or async.

    It returns one score per completion, or a table of preferences [i][j], the probability that i is preferred to j."""

    kind: Literal["function"] = "function"
    path: str = Field(description="`package.module:function`, importable where the judge runs")


class HttpJudgeConfig(Settings):
    """What judges behind HTTP have in common: where, with which key, how patiently, how many at a time."""

    url: str = Field(description="where the server is, `http://` or `https://`, without key, query and fragment")
    model: str = Field(description="name of the model on the server")
    api_key_env: str | None = Field(
        default=None,
        description="NAME of the environment variable with the key, read where the judge runs. Unset: no key is sent",
    )
    max_concurrent_requests: int = Field(default=16, ge=1, description="requests under way at a time")
    request_timeout_seconds: float = Field(default=30.0, gt=0.0, description="seconds for one try of a request")
    request_retries: int = Field(
        default=3, ge=0, description="further tries after 408, 425, 429, 5xx, time-outs, broken connections and garbage"
    )
    request_backoff_seconds: float = Field(
        default=1.0, ge=0.0, description="seconds before the first retry, doubled each time, up to half of it less"
    )
    longest_pause_seconds: float = Field(
        default=20.0, gt=0.0, description="seconds; a server that asks for a longer pause (Retry-After) is given up"
    )

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be http://HOST[:PORT][/PATH] or https://..., without query and fragment")
        if parts.username is not None or parts.password is not None:
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
        """Seconds that one request may take with all its tries and pauses."""
        pauses = self.request_retries * self.longest_pause_seconds
        return self.request_timeout_seconds * (1 + self.request_retries) + pauses


class EndpointJudgeConfig(HttpJudgeConfig):
    """A language model that compares completions in pairs, both orders, behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="base of the API as clients take it, such as https://api.openai.com/v1")
    system: str | None = Field(default=None, description="system message; unset: none")
    template: str | None = Field(
        default=None,
        description="Jinja template of the user message, of `prompt`, `messages`, `answer`, `first` and `second`; "
        "unset: the one in docs/judges.md",
    )
    verdict_pattern: str = Field(
        default=r"(?im)^[^\w\n]*(?:(?:answer|verdict)[^\w\n]*)?([ABC])[^\w\n]*$",
        description="regular expression; group 1 of its last match is the verdict: A first, B second, C neither",
    )
    use_logprobs: bool = Field(
        default=False, description="probabilities from the log-probs of the verdict's token instead of 1, 0 and 1/2"
    )
    abstention: Literal["tie", "fail"] = Field(
        default="tie",
        description="what an answer without verdict does: `tie` counts it 1/2; `fail` returns the group",
    )
    temperature: float | None = Field(default=0.0, ge=0.0, description="of the judging model; null leaves it out")
    max_tokens: int | None = Field(default=16, ge=1, description="tokens per answer; null leaves it out")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the request's body; they win over the judge's own"
    )
    input_price: float = Field(default=0.0, ge=0.0, description="price of a million input tokens, any currency")
    output_price: float = Field(default=0.0, ge=0.0, description="price of a million output tokens, same currency")

    @field_validator("extra_body")
    @classmethod
    def _holds_no_secret(cls, body: dict[str, Any]) -> dict[str, Any]:
        # The value is not shown, and the configuration is saved with the run.
        for name in secret_names(body):
            raise ValueError(
                f"must hold no secret, and {name} looks like one; put a key into an environment variable and name that "
                "in api_key_env"
            )
        return body


class ServedRewardModelJudgeConfig(HttpJudgeConfig):
    """A reward model behind vLLM's server, `vllm serve MODEL --runner pooling`: its `/classify`."""

    kind: Literal["served"] = "served"
    url: str = Field(description="where the server is, such as http://127.0.0.1:8000, without /v1")
    tokenizer: str | None = Field(
        default=None, description="directory or hub name of the reward model's tokenizer; unset: `model`"
    )


MemberKind = Annotated[
    GoldJudgeConfig
    | BradleyTerryJudgeConfig
    | RewardModelJudgeConfig
    | PreferenceModelJudgeConfig
    | VerifierJudgeConfig
    | FunctionJudgeConfig
    | EndpointJudgeConfig
    | ServedRewardModelJudgeConfig,
    Field(discriminator="kind"),
]


class EnsembleMember(Settings):
    """One judge of an ensemble."""

    judge: MemberKind = Field(description="any judge but an ensemble")
    weight: float = Field(default=1.0, gt=0.0, description="share of the verdict, relative to the other members'")


class EnsembleJudgeConfig(Settings):
    """Several judges whose scores and preferences are averaged by weight."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[EnsembleMember, ...] = Field(
        min_length=2, description="two or more of `{judge: {kind: ..., ...}, weight: ...}`; no ensembles within"
    )

    @field_validator("members", mode="wrap")
    @classmethod
    def _mistakes_name_their_member(cls, members: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(members)
        except ValidationError as error:
            raise ValueError("; ".join(map(_mistake, error.errors(include_url=False)))) from None

    @model_validator(mode="after")
    def _fits_one_gpu(self) -> EnsembleJudgeConfig:
        gpus = sum(getattr(member.judge, "gpus", 0.0) for member in self.members)
        if gpus > 1.0:
            raise ValueError(
                f"the members' gpus add up to {gpus:g}, and all are put on one GPU; let them add up to 1 at most, or "
                "serve their models with vLLM and judge with kind served"
            )
        return self


def _mistake(detail: Any) -> str:
    """One of pydantic's errors in a list of members; without the value, which may be a secret in the wrong place."""
    index, *path = detail["loc"] or ("",)
    where = f"member {index + 1}" if isinstance(index, int) else "members"
    return f"{where}{''.join(f'.{part}' for part in path)}: {detail['msg'].removeprefix('Value error, ')}"


JudgeKind = Annotated[
    GoldJudgeConfig
    | BradleyTerryJudgeConfig
    | RewardModelJudgeConfig
    | PreferenceModelJudgeConfig
    | VerifierJudgeConfig
    | FunctionJudgeConfig
    | EndpointJudgeConfig
    | ServedRewardModelJudgeConfig
    | EnsembleJudgeConfig,
    Field(discriminator="kind"),
]


class JudgingConfig(Settings):
    """How judges are run, whatever their kind."""

    judge: JudgeKind = Field(default_factory=GoldJudgeConfig, description="which judge")
    missing_eos_score: float | None = Field(
        default=-1.0,
        description="score that replaces the judge's for a completion without end-of-sequence; null keeps it",
    )
    count: int = Field(default=1, ge=1, description="judge actors, each with models or connections of its own")
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a judge that died")
    max_batch_groups: int = Field(default=64, ge=1, description="groups judged together")
    timeout_seconds: float = Field(default=60.0, gt=0.0, description="seconds for one batch")
    retries: int = Field(default=2, ge=0, description="further attempts before the group is returned with the reason")
    retry_backoff_seconds: float = Field(
        default=0.5, ge=0.0, description="seconds before the first retry, doubled each time"
    )

    @model_validator(mode="after")
    def _a_request_ends_before_its_batch(self) -> JudgingConfig:
        for judge in self.judges:
            if isinstance(judge, HttpJudgeConfig) and judge.longest_request_seconds > self.timeout_seconds:
                raise ValueError(
                    f"timeout_seconds {self.timeout_seconds:g} is below the {judge.longest_request_seconds:g} s that "
                    f"one request of the judge {judge.kind} may take with its retries; raise the first (and "
                    "replay.lease_seconds with it), or lower the judge's request_timeout_seconds, request_retries or "
                    "longest_pause_seconds"
                )
        return self

    @property
    def judges(self) -> tuple[JudgeKind, ...]:
        """The judge, or the members of an ensemble."""
        if isinstance(self.judge, EnsembleJudgeConfig):
            return tuple(member.judge for member in self.judge.members)
        return (self.judge,)

    @property
    def gpus(self) -> float:
        """GPUs that one judge actor reserves."""
        return sum(getattr(judge, "gpus", 0.0) for judge in self.judges)

    @property
    def longest_seconds(self) -> float:
        """Seconds that one batch may take with all its retries."""
        backoff = self.retry_backoff_seconds * (2**self.retries - 1)
        return self.timeout_seconds * (self.retries + 1) + backoff
