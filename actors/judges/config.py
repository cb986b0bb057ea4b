"""Settings of the judges: one model per kind, and `JudgingConfig` for what all kinds share. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from actors.redaction import secret_names
from actors.settings import Settings

Task = Literal["transitive", "intransitive"]


class WorldJudgeConfig(Settings):
    """Shared by the embedded world's judges."""

    kind: str
    task: Task | None = Field(default=None, description="task of the embedded world; unset: world.task")
    seed: int | None = Field(default=None, ge=0, description="seed of the embedded world; unset: world.seed")


class GoldJudgeConfig(WorldJudgeConfig):
    """The embedded world's closed-form preference."""

    kind: Literal["gold"] = "gold"


class BradleyTerryJudgeConfig(WorldJudgeConfig):
    """The embedded world's Bradley-Terry model: the rewards that best explain its preference on the corpus's pairs."""

    kind: Literal["bradley_terry"] = "bradley_terry"


class ModelJudgeConfig(Settings):
    """Shared by judges that run a model in their own process."""

    kind: str
    path: str = Field(description="directory or hub name of the model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype of the judge's weights")
    batch_tokens: int = Field(default=16384, ge=1, description="padded tokens per forward pass")
    gpus: float = Field(default=0.0, ge=0.0, description="GPUs that the judge actor reserves from Ray")


class RewardModelJudgeConfig(ModelJudgeConfig):
    """A Bradley-Terry reward model: any Hugging Face sequence-classification model with one label."""

    kind: Literal["reward_model"] = "reward_model"


class PreferenceModelJudgeConfig(ModelJudgeConfig):
    """A preference model trained by `offbeat preference`: Bradley-Terry, pairwise or skew-symmetric."""

    kind: Literal["preference_model"] = "preference_model"
    path: str = Field(description="directory or hub name of the model, with its preference.json")


class VerifierJudgeConfig(Settings):
    """Exact-answer match, in the GSM8K format by default: 1 for the right final answer, 0 otherwise."""

    kind: Literal["verifier"] = "verifier"
    format: Literal["pattern", "boxed"] = Field(
        default="pattern",
        description=r"where the final answer is: `pattern`, found by answer_pattern; `boxed`, the last \boxed{...}",
    )
    answer_pattern: str = Field(
        default=r"####\s*([^\n]+)",
        description="regular expression; group 1 of its last match is the final answer. With format boxed, it is used "
        "only for gold answers without a box",
    )
    format_score: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="score of a wrong answer in the right format; any other wrong one: 0"
    )


class FunctionJudgeConfig(Settings):
    """A Python function: `f(prompt: Prompt, completions: Sequence[Completion])`, plain or async.

    It returns one score per completion, or a table whose [i][j] is the probability that i is preferred to j."""

    kind: Literal["function"] = "function"
    path: str = Field(description="`package.module:function`, importable where the judge runs")


class HttpJudgeConfig(Settings):
    """Shared by judges behind HTTP: the server, its key, time limits, retries and concurrency."""

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
        """Longest time for one request with all its attempts and pauses (seconds)."""
        pauses = self.request_retries * self.longest_pause_seconds
        return self.request_timeout_seconds * (1 + self.request_retries) + pauses


class EndpointJudgeConfig(HttpJudgeConfig):
    """A language model behind an OpenAI-compatible endpoint that compares completions in pairs, in both orders."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="base URL of the API, such as https://api.openai.com/v1")
    system: str | None = Field(default=None, description="system message; unset: none")
    template: str | None = Field(
        default=None,
        description="Jinja template of the user message, with `prompt`, `messages`, `answer`, `first` and `second`; "
        "unset: the one in docs/judges.md",
    )
    verdict_pattern: str = Field(
        default=r"(?im)^[^\w\n]*(?:(?:answer|verdict)[^\w\n]*)?([ABC])[^\w\n]*$",
        description="regular expression; group 1 of its last match is the verdict: A first, B second, C neither",
    )
    use_logprobs: bool = Field(
        default=False, description="read probabilities from the log-probs of the verdict token, instead of 1, 0 and 1/2"
    )
    abstention: Literal["tie", "fail"] = Field(
        default="tie", description="an answer without a verdict: `tie` counts it as 1/2; `fail` fails the group"
    )
    temperature: float | None = Field(default=0.0, ge=0.0, description="of the judging model; null omits it")
    max_tokens: int | None = Field(default=16, ge=1, description="tokens per answer; null omits it")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="more fields of the request body; they override the judge's own"
    )
    input_price: float = Field(default=0.0, ge=0.0, description="price per million input tokens, in any currency")
    output_price: float = Field(default=0.0, ge=0.0, description="price per million output tokens, same currency")

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
    """A reward model served by vLLM (`vllm serve MODEL --runner pooling`), at its `/classify`."""

    kind: Literal["served"] = "served"
    url: str = Field(description="address of the server, such as http://127.0.0.1:8000, without /v1")
    tokenizer: str | None = Field(
        default=None, description="directory or hub name of the reward model's tokenizer; unset: `model`"
    )


SingleJudgeConfig: TypeAlias = (
    GoldJudgeConfig
    | BradleyTerryJudgeConfig
    | RewardModelJudgeConfig
    | PreferenceModelJudgeConfig
    | VerifierJudgeConfig
    | FunctionJudgeConfig
    | EndpointJudgeConfig
    | ServedRewardModelJudgeConfig
)


class EnsembleMember(Settings):
    """One judge of an ensemble."""

    judge: Annotated[SingleJudgeConfig, Field(discriminator="kind")] = Field(description="any judge but an ensemble")
    weight: float = Field(default=1.0, gt=0.0, description="weight in the averages, relative to the other members'")


class EnsembleJudgeConfig(Settings):
    """Several judges whose scores and preferences are averaged by weight."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[EnsembleMember, ...] = Field(
        min_length=2, description="two or more of `{judge: {kind: ..., ...}, weight: ...}`; no nested ensembles"
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
                f"the members' gpus add up to {gpus:g}, but all members share one GPU; lower them to at most 1 in "
                "total, or serve their models with vLLM and use judges of kind served"
            )
        return self


def _mistake(detail: Any) -> str:
    """Format one of pydantic's errors in a list of members, without the value: it may be a misplaced secret."""
    index, *path = detail["loc"] or ("",)
    where = f"member {index + 1}" if isinstance(index, int) else "members"
    return f"{where}{''.join(f'.{part}' for part in path)}: {detail['msg'].removeprefix('Value error, ')}"


JudgeKind = Annotated[SingleJudgeConfig | EnsembleJudgeConfig, Field(discriminator="kind")]


class JudgingConfig(Settings):
    """How judges are run, whatever their kind."""

    judge: JudgeKind = Field(default_factory=GoldJudgeConfig, description="which judge")
    missing_eos_score: float | None = Field(
        default=-1.0,
        description="score that replaces the judge's for a completion without end-of-sequence; null keeps the judge's",
    )
    count: int = Field(default=1, ge=1, description="judge actors, each with its own models or connections")
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a judge that died")
    max_batch_groups: int = Field(default=64, ge=1, description="groups judged together")
    timeout_seconds: float = Field(default=60.0, gt=0.0, description="seconds for one batch")
    retries: int = Field(default=2, ge=0, description="retries of a failed batch before its groups are judged alone")
    retry_backoff_seconds: float = Field(
        default=0.5, ge=0.0, description="seconds before the first retry, doubled each time"
    )

    @model_validator(mode="after")
    def _a_request_ends_before_its_batch(self) -> JudgingConfig:
        for judge in self.judges:
            if isinstance(judge, HttpJudgeConfig) and judge.longest_request_seconds > self.timeout_seconds:
                raise ValueError(
                    f"timeout_seconds {self.timeout_seconds:g} is below the {judge.longest_request_seconds:g} s that "
                    f"one request of the judge {judge.kind} may take with its retries; raise timeout_seconds and "
                    "replay.lease_seconds, or lower the judge's request_timeout_seconds, request_retries or "
                    "longest_pause_seconds"
                )
        return self

    def with_world(self, task: Task, seed: int) -> JudgingConfig:
        """Return a copy in which the embedded world's judges, ensemble members included, have a task and a seed."""
        return self.model_copy(update={"judge": _with_world(self.judge, task, seed)})

    @property
    def judges(self) -> tuple[JudgeKind, ...]:
        """The judge, or the members of an ensemble."""
        if isinstance(self.judge, EnsembleJudgeConfig):
            return tuple(member.judge for member in self.judge.members)
        return (self.judge,)

    @property
    def gpus(self) -> float:
        """GPUs reserved by one judge actor."""
        return sum(getattr(judge, "gpus", 0.0) for judge in self.judges)

    @property
    def longest_seconds(self) -> float:
        """Longest time for one batch with all its retries (seconds)."""
        backoff = self.retry_backoff_seconds * (2**self.retries - 1)
        return self.timeout_seconds * (self.retries + 1) + backoff


def _with_world(judge: JudgeKind, task: Task, seed: int) -> JudgeKind:
    if isinstance(judge, EnsembleJudgeConfig):
        members = [each.model_copy(update={"judge": _with_world(each.judge, task, seed)}) for each in judge.members]
        return judge.model_copy(update={"members": tuple(members)})
    if isinstance(judge, WorldJudgeConfig):
        unset = {name: value for name, value in (("task", task), ("seed", seed)) if getattr(judge, name) is None}
        return judge.model_copy(update=unset)
    return judge
