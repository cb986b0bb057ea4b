"""Inputs and results of an evaluation. Must not know actors or the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.records import Group, Prompt
from actors.replay_buffer.pairing import MissingEos
from launch.run import win_rate
from launch.run.win_rate import Reward, WinRate


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation prompts and the starting policy's completions of them."""

    prompts: Sequence[Prompt]
    baseline: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Figures of a policy from one evaluation."""

    win_rate: WinRate | None = None
    reward: Reward | None = None
    kl: float | None = None  # KL(policy || reference), nats per completion
    exact: Mapping[str, float] = field(default_factory=dict)  # by enumeration, if the game is known

    @classmethod
    def of(
        cls,
        judged: Sequence[Group],
        missing_eos_score: MissingEos,
        policy: Sequence[Sequence[float]],
        reference: Sequence[Sequence[float]],
    ) -> Evaluated:
        """Evaluate judged groups, and the log-probs (nats) of each completion's tokens under policy and reference."""
        shares = [win_rate.win_share(group, missing_eos_score) for group in judged]
        return cls(
            win_rate.win_rate(win_rate.by_prompt(judged, shares)),
            win_rate.reward(judged, missing_eos_score),
            win_rate.sequence_kl(policy, reference),
        )
