"""Settings of the reference actors. Must not import anything heavy."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field, field_validator

from actors.foreign.passed_on import checked_environment, checked_labels, checked_resources
from actors.settings import MOST_ACTORS, SMALLEST_SHARE, GpuShare, Settings
from learner.config import LearnerConfig
from learner.losses.config import GameLossConfig

_OWN_VARIABLES = {"OMP_NUM_THREADS": "it follows reference.cpus; set that"}


class ReferenceConfig(Settings):
    """Actors that compute the frozen reference's log-probs while groups are judged, in place of the learner."""

    count: int = Field(
        default=0,
        ge=0,
        le=MOST_ACTORS,
        description="reference actors; 0: the learner holds the reference, and computes its log-probs in every update",
    )
    gpus: GpuShare = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of a GPU that each reference actor reserves from Ray; 0: on CPU",
    )
    cpus: float = Field(
        default=1.0, ge=SMALLEST_SHARE, description="CPU cores per reference actor, reserved from Ray; its threads"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="dtype of the reference's weights on these actors; unset: learner.dtype"
    )
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="padded tokens per forward pass; a prompt's completions are split to fit"
    )
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a reference actor that died")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the reference actors' processes"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources that each reference actor reserves from Ray: name, amount"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="labels of the nodes that each reference actor may run on, as Ray's label selector",
    )

    _variables = field_validator("environment", mode="before")(partial(checked_environment, owned=_OWN_VARIABLES))
    _amounts = field_validator("resources", mode="before")(checked_resources)
    _selector = field_validator("labels", mode="before")(checked_labels)


def reference_problem(reference: ReferenceConfig, learner: LearnerConfig, *, own_model: bool) -> str | None:
    """Return why the reference cannot be where the settings want it, with the next step; None if it can.

    `own_model`: whether it is another model than the starting policy.
    """
    if reference.count == 0:
        if learner.offload_reference and learner.lora is not None and not own_model:
            return (
                "learner.offload_reference has no effect with learner.lora: the base of the adapters is the reference, "
                "without a copy of its own; leave it out"
            )
        return None
    loss = learner.loss
    if isinstance(loss, GameLossConfig) and loss.weighs_opponents and 0.0 < loss.opponent.target_beta < 1.0:
        return (
            f"reference.count {reference.count} records the reference's log-probs of sampled tokens alone, and the "
            f"importance weights of learner.loss.opponent.kind {loss.opponent.kind} with beta {loss.opponent.beta:g} "
            "need its whole distribution in every update; set reference.count to 0, "
            "learner.loss.correction.opponents to none, or beta to 0 or 1"
        )
    if learner.offload_reference:
        return (
            f"learner.offload_reference has no effect with reference.count {reference.count}: the learner holds no "
            "reference; leave it out, or set reference.count to 0"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpec:
    """Everything that one reference actor is built from. Made by the wiring; read by the worker.

    All but `config` are the learner's own, so that both compute the same log-probs.
    """

    config: ReferenceConfig
    model_dir: str  # directory or hub name of the reference
    dtype: str
    logprob_chunk: int = 512
    temperature: float = 1.0
    head_dtype: str = "model"
    share_prompts: bool = True
