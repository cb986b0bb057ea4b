"""Settings of admission and the replay buffer. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from actors.settings import Settings


class ReplayConfig(Settings):
    """Admission and the replay buffer: how far generation may run ahead of learning."""

    prompts_per_update: int = Field(
        default=32, ge=1, le=1_000_000, description="prompts (groups) consumed by one optimizer step"
    )
    updates_per_publish: int = Field(default=1, ge=1, description="optimizer steps per policy version")
    max_staleness: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="policy versions; staleness bound S: no consumed token is older. 0 is synchronous and on-policy",
    )
    order: Literal["lease", "ready"] = Field(
        default="lease",
        description="`lease` consumes prompts in the order they were leased and drops none as stale; "
        "`ready` takes the first ready groups and drops those that exceed the bound",
    )
    max_reuse: int = Field(default=1, ge=1, description="times a group may be consumed; more than 1 needs order ready")
    lease_seconds: float = Field(
        default=600.0, gt=0.0, description="time until an unanswered lease expires and is reissued (seconds)"
    )
    max_attempts: int = Field(
        default=3, ge=1, description="failed attempts at one lease before its prompt is dropped with the reason"
    )

    @model_validator(mode="after")
    def _reuse_needs_ready_order(self) -> ReplayConfig:
        if self.max_reuse > 1 and self.order == "lease":
            raise ValueError(
                f"max_reuse {self.max_reuse} cannot be met with order 'lease', which consumes every lease once; "
                "set order to 'ready' or max_reuse to 1"
            )
        return self

    @property
    def prompts_per_version(self) -> int:
        """Return B: prompts consumed between two published versions."""
        return self.prompts_per_update * self.updates_per_publish

    @property
    def most_uses(self) -> int:
        """Return the number of updates in which a group is within the bound.

        These are the updates [vk, (v + S + 1)k) for tokens of version v.
        """
        return (self.max_staleness + 1) * self.updates_per_publish
