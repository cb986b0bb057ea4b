"""Settings of the judges: one model per kind, and `JudgingConfig` for what all kinds share. Imports nothing heavy."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from actors.foreign.passed_on import checked_environment, checked_labels, checked_resources
from actors.judges.answers.config import CodeJudgeConfig, InstructionsJudgeConfig, VerifierJudgeConfig
from actors.judges.http.config import EndpointJudgeConfig, HttpJudgeConfig, ServedRewardModelJudgeConfig
from actors.settings import MOST_ACTORS, GpuShare, ModelPath, Settings, item_mistakes

Task = Literal["transitive", "intransitive"]


class WorldJudgeConfig(Settings):
    """Settings shared by the embedded world's judges."""

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
    """Settings shared by judges that run a model in their own process."""

    kind: str
    path: ModelPath = Field(description="directory or hub name of the model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype of the judge's weights")
    batch_tokens: int = Field(default=16384, ge=1, description="padded tokens per forward pass")
    gpus: GpuShare = Field(
        default=0.0, ge=0.0, le=1.0, description="share of a GPU that the judge actor reserves from Ray; 0: on CPU"
    )


class RewardModelJudgeConfig(ModelJudgeConfig):
    """A Bradley-Terry reward model: any Hugging Face sequence-classification model with one label."""

    kind: Literal["reward_model"] = "reward_model"


class PreferenceModelJudgeConfig(ModelJudgeConfig):
    """A preference model trained by `offbeat preference`: Bradley-Terry, pairwise or skew-symmetric."""

    kind: Literal["preference_model"] = "preference_model"
    path: ModelPath = Field(description="directory or hub name of the model, with its preference.json")


class FunctionJudgeConfig(Settings):
    """A Python function: `f(prompt: Prompt, completions: Sequence[Completion])`, plain or async.

    It returns one score per completion, or a table whose [i][j] is the probability that i is preferred to j."""

    kind: Literal["function"] = "function"
    path: str = Field(description="`package.module:function`, importable where the judge runs")
    memory_mb: int | None = Field(
        default=None, ge=256, description="MiB of address space for the function's process; unset: no limit"
    )
    import_timeout_seconds: float = Field(
        default=300.0, gt=0.0, description="seconds to import the module, which judging.timeout_seconds does not count"
    )


SingleJudgeConfig: TypeAlias = (
    GoldJudgeConfig
    | BradleyTerryJudgeConfig
    | RewardModelJudgeConfig
    | PreferenceModelJudgeConfig
    | VerifierJudgeConfig
    | CodeJudgeConfig
    | InstructionsJudgeConfig
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
            raise ValueError(item_mistakes(error, "member")) from None

    @model_validator(mode="after")
    def _fits_one_gpu(self) -> EnsembleJudgeConfig:
        gpus = sum(getattr(member.judge, "gpus", 0.0) for member in self.members)
        if gpus > 1.0:
            raise ValueError(
                f"the members' gpus add up to {gpus:g}, but all members share one GPU; lower them to at most 1 in "
                "total, or serve their models with vLLM and use judges of kind served"
            )
        return self


def _members(judge: Any) -> tuple[Any, ...]:
    """Return the judges of an ensemble, or the judge itself."""
    return tuple(each.judge for each in judge.members) if isinstance(judge, EnsembleJudgeConfig) else (judge,)


def _batch_seconds(given: dict[str, Any]) -> float:
    """Return the default time limit of a batch (s), long enough for any one request of the judge in `given`."""
    judges = _members(given.get("judge"))
    return max([60.0, *(each.longest_request_seconds for each in judges if isinstance(each, HttpJudgeConfig))])


JudgeKind = Annotated[SingleJudgeConfig | EnsembleJudgeConfig, Field(discriminator="kind")]


class JudgingConfig(Settings):
    """The running of judges, whatever their kind."""

    judge: JudgeKind = Field(default_factory=GoldJudgeConfig, description="which judge")
    missing_eos_score: float | Literal["below_finished"] | None = Field(
        default="below_finished",
        description="score that replaces the judge's for a completion without end-of-sequence; `below_finished` is "
        "below every finished completion of its prompt, whatever the unit of the scores; null keeps the judge's",
    )
    count: int = Field(
        default=1, ge=1, le=MOST_ACTORS, description="judge actors, each with its own models or connections"
    )
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a judge that died")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the judges' processes"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources that each judge reserves from Ray: name and amount"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that each judge may run on, as Ray's label selector"
    )
    max_batch_groups: int = Field(default=64, ge=1, description="groups judged together")
    timeout_seconds: float = Field(
        default_factory=_batch_seconds,
        gt=0.0,
        description="seconds for one batch; unset: 60, or those that a request of an HTTP judge may take with its "
        "retries",
    )
    retries: int = Field(default=2, ge=0, description="retries of a failed batch before its groups are judged alone")
    retry_backoff_seconds: float = Field(
        default=0.5, ge=0.0, description="seconds before the first retry, doubled each time"
    )

    _variables = field_validator("environment", mode="before")(partial(checked_environment, owned={}))
    _amounts = field_validator("resources", mode="before")(checked_resources)
    _selector = field_validator("labels", mode="before")(checked_labels)

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
        """Return the judge, or the members of an ensemble, as a tuple."""
        return _members(self.judge)

    @property
    def gpus(self) -> float:
        """GPUs reserved by one judge actor."""
        return sum(getattr(judge, "gpus", 0.0) for judge in self.judges)

    def in_time(self, completions: int) -> bool:
        """Return whether a batch of `completions` ends within `timeout_seconds` even if every program hangs."""
        programs = [judge for judge in self.judges if isinstance(judge, CodeJudgeConfig)]
        return all(judge.longest_seconds(completions) <= self.timeout_seconds for judge in programs)

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
