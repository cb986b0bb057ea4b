"""The whole configuration of a run, composed of the settings of each part. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from actors.adapters.config import LoraConfig
from actors.data.config import ChatTemplateConfig, PromptConfig
from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig, adapter_problem
from actors.judges.config import JudgingConfig
from actors.replay_buffer.config import ReplayConfig
from actors.settings import ModelPath, OutputPath, Settings
from launch.settings.gpus import gpu_problem
from launch.settings.output import JournalConfig, LogConfig, SamplesConfig, TrackingConfig
from launch.settings.runtime_env import address_problem, checked_runtime_env, upload_problem
from learner.config import LearnerConfig
from learner.losses.config import Anchor, settled_anchor
from learner.publication.config import PublicationConfig
from learner.reference.config import ReferenceConfig, reference_problem

NAME = r"^[A-Za-z0-9._-]+$"


class ModelConfig(ChatTemplateConfig):
    """The policy to start from, and the frozen reference policy."""

    path: ModelPath = Field(
        description="Hugging Face directory or hub name of the policy to start from; `world` first trains the embedded "
        "world's small policy"
    )
    reference: ModelPath | None = Field(
        default=None,
        description="directory or hub name of the frozen reference, with the policy's vocabulary; unset: the starting "
        "policy",
    )
    tokenizer: ModelPath | None = Field(default=None, description="directory or hub name; unset: the model's own")
    head_dtype: Literal["model", "float32"] = Field(
        default="model",
        description="dtype in which engines and learner alike compute logits; float32 rounds bfloat16 weights' less",
    )


class WorldConfig(Settings):
    """The embedded world, used if model.path or prompts.source is `world`."""

    task: Literal["transitive", "intransitive"] = Field(
        default="transitive", description="which closed-form preference the judges know"
    )
    sft_updates: int = Field(
        default=300, ge=1, description="optimizer steps of supervised training of the small policy"
    )
    size: Literal["small", "medium", "large"] = Field(
        default="medium", description="parameters of the small policy: 0.3, 1.3 or 5 million"
    )
    seed: int = Field(default=0, ge=0, description="seed of corpus, initial weights and supervised training")


class EvaluationConfig(Settings):
    """Win rate of the policy against its starting point, by the run's judge."""

    prompts: int = Field(
        default=256, ge=0, description="prompts sampled at the start and at every evaluation; 0 turns it off"
    )
    every_updates: int = Field(
        default=0, ge=0, description="optimizer steps between evaluations; 0 evaluates only at the end"
    )
    exact_every_updates: int = Field(
        default=10,
        ge=0,
        description="embedded world: optimizer steps between evaluations by enumeration (exploitability, KL); 0: none",
    )


class BandConfig(Settings):
    """The band that a healthy run's figures stay in, whatever is trained."""

    updates: int = Field(
        default=3, ge=1, description="updates in a row outside the band before the action; an evaluation counts at once"
    )
    max_loss: float | None = Field(
        default=None, gt=0.0, description="largest size of an update's loss; unset: any, as scales differ by loss"
    )
    max_grad_norm_ratio: float | None = Field(
        default=100.0, gt=1.0, description="largest gradient norm, in medians of the last 100 updates; null: any"
    )


class DivergenceConfig(BandConfig):
    """Reaction of a run to figures outside a band: a policy that diverges, or a poisoned batch."""

    action: Literal["warn", "stop", "rollback"] = Field(
        default="warn",
        description="warn: a message and the board; stop: save a checkpoint, then fail; rollback: go on from the last "
        "checkpoint from before, with new completions",
    )
    max_kl: float | None = Field(
        default=500.0,
        gt=0.0,
        description="largest KL to the reference, of an evaluation or an update's completions (nats per completion); "
        "null: any",
    )
    max_rollbacks: int = Field(
        default=3, ge=0, description="rollbacks of one process before the run fails, its latest checkpoint a good one"
    )


class CheckpointConfig(Settings):
    """Frequency of checkpoints, and the number to keep."""

    every_updates: int = Field(
        default=100, ge=0, description="optimizer steps between checkpoints; 0: only at the end or on an interrupt"
    )
    keep: int = Field(default=2, ge=1, description="newest checkpoints to keep")


class ClusterConfig(Settings):
    """The Ray cluster to run on."""

    address: str = Field(
        default="auto",
        description="`local` starts a new Ray; `auto` joins the cluster that this job was submitted to, else starts a "
        "new one; or HOST:PORT",
    )
    num_cpus: int | None = Field(
        default=None, ge=1, description="CPU cores of a Ray started here; unset: all cores of the machine"
    )
    object_store_mib: int = Field(default=512, ge=80, description="shared memory for a Ray started here (MiB)")
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray's runtime environment of all workers: pip, conda, image_uri and so on; working_dir and "
        "py_modules only if a cluster is joined",
    )

    _keys = field_validator("runtime_env", mode="before")(checked_runtime_env)

    @field_validator("address")
    @classmethod
    def _can_be_joined(cls, address: str) -> str:
        if problem := address_problem(address):
            raise ValueError(problem)
        return address

    @model_validator(mode="after")
    def _code_is_uploaded_to_a_cluster(self) -> ClusterConfig:
        problem = upload_problem(self.runtime_env) if self.address == "local" else None
        if problem is not None:
            raise ValueError(problem.removeprefix("cluster."))
        return self


class WatchdogConfig(Settings):
    """Limits for actors that live and do nothing."""

    warn_seconds: float | None = Field(
        default=12.0, gt=0.0, description="silence of an actor after which the run says so; null: no watchdog"
    )
    end_seconds: float | None = Field(
        default=120.0,
        gt=0.0,
        description="silence after which the actor is ended: generators and judges start again, a learner rank ends "
        "the run; null: never",
    )
    start_seconds: float | None = Field(
        default=600.0, gt=0.0, description="start of an actor after which the run says that it lasts; null: never"
    )


class NamedConfig(Settings):
    """Settings that runs of every verb share."""

    name: str = Field(default="run", pattern=NAME, description="name of the run; its output directory is runs/NAME")
    output: OutputPath | None = Field(default=None, description="output directory; unset: runs/NAME")

    @property
    def directory(self) -> Path:
        """The run's output directory."""
        return Path(self.output) if self.output is not None else Path("runs") / self.name


class TrainingConfig(NamedConfig):
    """Settings that runs of every training verb share."""

    checkpoints: CheckpointConfig = Field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _workers_find_the_output(self) -> TrainingConfig:
        if "working_dir" in self.cluster.runtime_env and not self.directory.is_absolute():
            raise ValueError(
                f"with cluster.runtime_env.working_dir workers start in a copy of that directory, and would write "
                f"{self.directory} there, which Ray removes; set output to an absolute path"
            )
        return self


_NEED_ANSWERS = {"verifier": "gold answers", "code": "tests", "instructions": "instructions"}
"""Kinds of judges that read `prompts.answer_field`, and what it holds."""


class RunConfig(TrainingConfig):
    """One asynchronous RLHF run."""

    updates: int = Field(default=1000, ge=1, description="optimizer steps in total")
    seed: int = Field(default=0, ge=0, description="seed of the engines' sampling")
    deterministic: bool = Field(
        default=False,
        description="use a fixed schedule: each policy version samples its own batch of leases as a whole, so that on "
        "CPU a run ends with the same weights bit for bit, interrupted or not. Needs one generator and lease order",
    )
    model: ModelConfig
    world: WorldConfig = Field(default_factory=WorldConfig)
    prompts: PromptConfig = Field(default_factory=PromptConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    generators: GeneratorConfig = Field(default_factory=GeneratorConfig)
    judging: JudgingConfig = Field(default_factory=JudgingConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    publication: PublicationConfig = Field(default_factory=PublicationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    journal: JournalConfig = Field(default_factory=JournalConfig)
    divergence: DivergenceConfig = Field(default_factory=DivergenceConfig)

    @model_validator(mode="after")
    def _lengths_fit_the_engine(self) -> RunConfig:
        needed = self.prompts.max_prompt_tokens + self.sampling.max_new_tokens
        if needed > self.generators.max_model_len:
            raise ValueError(
                f"prompts.max_prompt_tokens {self.prompts.max_prompt_tokens} + sampling.max_new_tokens "
                f"{self.sampling.max_new_tokens} = {needed} exceed generators.max_model_len "
                f"{self.generators.max_model_len}; raise the last or lower one of the first two"
            )
        return self

    @model_validator(mode="after")
    def _canary_fits_the_engine(self) -> RunConfig:
        if self.publication.canary_tokens >= self.generators.max_model_len:
            raise ValueError(
                f"publication.canary_tokens {self.publication.canary_tokens} must be below generators.max_model_len "
                f"{self.generators.max_model_len}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _engines_multiply_with_adapters(self) -> RunConfig:
        problem = adapter_problem(self.generators.dtype, gpu=self.learner.gpus_per_rank > 0)
        if self.adapter is not None and problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _the_last_update_is_published(self) -> RunConfig:
        step = self.replay.updates_per_publish
        if self.updates % step:
            below = self.updates - self.updates % step
            nearest = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(
                f"updates {self.updates} is not a multiple of replay.updates_per_publish {step}, so the final "
                f"model would never be published; set updates to {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _judging_ends_before_its_lease(self) -> RunConfig:
        if self.judging.longest_seconds >= self.replay.lease_seconds:
            raise ValueError(
                f"judging.timeout_seconds {self.judging.timeout_seconds:g} with judging.retries {self.judging.retries} "
                f"may take {self.judging.longest_seconds:g} s, and leases expire after replay.lease_seconds "
                f"{self.replay.lease_seconds:g}; raise the last, or lower one of the first two"
            )
        return self

    @model_validator(mode="after")
    def _answers_are_there(self) -> RunConfig:
        kind = next((judge.kind for judge in self.judging.judges if judge.kind in _NEED_ANSWERS), None)
        if kind is not None and self.prompts.answer_field is None:
            raise ValueError(
                f"judging.judge.kind {kind} needs {_NEED_ANSWERS[kind]}, and prompts.answer_field is unset; set it to "
                "the column that holds them"
            )
        return self

    @model_validator(mode="after")
    def _opponents_are_drawn_in_time(self) -> RunConfig:
        bound = None if self.opponent is None else self.opponent.max_staleness
        if bound is None:
            return self
        if bound > self.replay.max_staleness:
            raise ValueError(
                f"learner.loss.opponent.max_staleness {bound} exceeds replay.max_staleness "
                f"{self.replay.max_staleness}, the bound of the completions that wait for the opponents; lower the "
                "first, or leave it unset to draw both together"
            )
        if self.replay.order == "ready":
            raise ValueError(
                f"learner.loss.opponent.max_staleness {bound} needs to know which update consumes a prompt, and "
                "replay.order ready decides that late; set order to lease, or leave opponent.max_staleness unset"
            )
        return self

    @model_validator(mode="after")
    def _a_fixed_schedule_is_possible(self) -> RunConfig:
        if not self.deterministic:
            return self
        wanted: dict[str, tuple[Any, Any]] = {
            "generators.count": (self.generators.count, 1),
            "replay.order": (self.replay.order, "lease"),
            "replay.updates_per_publish": (self.replay.updates_per_publish, 1),
            "learner.loss.opponent.max_staleness": (self.opponent and self.opponent.max_staleness, None),
            "generators.on_update": (self.generators.on_update, "recompute"),
            "generators.async_scheduling": (self.generators.async_scheduling, False),
        }
        if self.divergence.action == "rollback":
            raise ValueError(
                "deterministic makes the same updates again after a rollback; set divergence.action to stop or warn, "
                "or leave deterministic out"
            )
        wrong = [f"{name} is {given!r} and must be {only!r}" for name, (given, only) in wanted.items() if given != only]
        if wrong:
            raise ValueError(f"deterministic needs a fixed schedule: {'; '.join(wrong)}; or leave deterministic out")
        return self

    @model_validator(mode="after")
    def _proven_log_probs_are_of_one_version(self) -> RunConfig:
        if self.generators.on_update == "keep" and self.replay.max_staleness == 0:
            raise ValueError(
                "generators.on_update keep mixes two versions' keys and values, and at replay.max_staleness 0 every "
                "token is held to be of the policy that trains on it; set on_update to recompute, which costs nothing "
                "there, or max_staleness to 1 or more"
            )
        return self

    @model_validator(mode="after")
    def _a_rollback_has_somewhere_to_go(self) -> RunConfig:
        every, keep = self.checkpoints.every_updates, self.checkpoints.keep
        if self.divergence.action == "rollback" and (every == 0 or keep < 2):
            raise ValueError(
                f"divergence.action rollback needs a checkpoint from before, and checkpoints.every_updates is {every}, "
                f"checkpoints.keep {keep}: the newest one may hold the policy that diverged; set the first to 1 or "
                "more and the second to 2 or more, or divergence.action to stop"
            )
        return self

    @model_validator(mode="after")
    def _every_player_has_opponents_and_peers(self) -> RunConfig:
        opponent, players = self.opponent, self.sampling.completions_per_prompt
        if opponent is not None and not opponent.sampled and players < 4:
            raise ValueError(
                f"sampling.completions_per_prompt {players} is too few to split: with learner.loss.opponent.kind "
                f"{opponent.kind} one half plays against the other, and each half needs two; set it to 4 or more, or "
                "set learner.loss.opponent.max_staleness to draw separate opponents"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_shared_by_those_that_can(self) -> RunConfig:
        if problem := gpu_problem(self.learner, self.generators, self.publication.transport):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _recorded_log_probs_are_enough(self) -> RunConfig:
        if problem := reference_problem(self.reference, self.learner, own_model=self.model.reference is not None):
            raise ValueError(problem)
        return self

    @property
    def adapter(self) -> LoraConfig | None:
        """The adapters that weight syncs hold; None if they hold all weights."""
        lora = self.learner.lora
        return lora if lora is not None and lora.publish == "adapter" else None

    @property
    def anchor(self) -> Anchor | None:
        """The anchor; numbers that are unset follow from the loss and the bound."""
        replay, learner = self.replay, self.learner
        return settled_anchor(learner.anchor, learner.loss, replay.max_staleness, replay.updates_per_publish)

    @property
    def opponent(self) -> OpponentConfig | None:
        """The loss's opponent; None with losses on pairs or scores."""
        return self.learner.loss.opponent
