"""Judges: what turns a prompt's completions into scores. One protocol, one factory, one module per kind.

Each kind is imported only when it is asked for. Judges must not know leases, buffers or how judgements become pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from actors.errors import OffbeatError
from actors.judges.config import (
    BradleyTerryJudgeConfig,
    EndpointJudgeConfig,
    EnsembleJudgeConfig,
    FunctionJudgeConfig,
    GoldJudgeConfig,
    JudgeKind,
    PreferenceModelJudgeConfig,
    RewardModelJudgeConfig,
    ServedRewardModelJudgeConfig,
    VerifierJudgeConfig,
)
from actors.records import Group, Judgement


class Judge(Protocol):
    """Anything that scores groups. It may fail: `retrying.judge_with_retries` handles errors, nonsense and silence."""

    async def judge(self, groups: Sequence[Group]) -> Sequence[Judgement | OffbeatError]:
        """One judgement per group, in order, each with one finite score per completion.

        A judge that has retried by itself answers with the error, not raised, for a group that it could not judge: it
        is not asked for it again, and the others keep what they got.
        """
        ...


@runtime_checkable
class MeasuredJudge(Protocol):
    """A judge that counts what it does."""

    def metrics(self) -> dict[str, float]:
        """Totals and extremes since the judge was made, by name."""
        ...


def make_judge(config: JudgeKind, *, task: str = "transitive", seed: int = 0, tokenizer: str | None = None) -> Judge:
    """The judge that `config` describes.

    Args:
        config: one of the judge configurations, told apart by `kind`.
        task: the embedded world's task, `transitive` or `intransitive`; read by the judges gold and bradley_terry.
        seed: the embedded world's seed; read by the judges gold and bradley_terry.
        tokenizer: directory or hub name of the policy's tokenizer; lets a reward model with the same vocabulary read
            the sampled token ids themselves instead of tokenising their text again.

    Raises:
        UsageError: the judge cannot be made from these settings.
    """
    match config:
        case GoldJudgeConfig():
            from actors.judges.gold import GoldJudge

            return GoldJudge(task, seed)
        case BradleyTerryJudgeConfig():
            from actors.judges.world import BradleyTerryJudge

            return BradleyTerryJudge(task, seed)
        case RewardModelJudgeConfig():
            from actors.judges.models.reward_model import RewardModelJudge

            return RewardModelJudge(config, policy_tokenizer=tokenizer)
        case PreferenceModelJudgeConfig():
            from actors.judges.models.preference_model import PreferenceModelJudge

            return PreferenceModelJudge(config, policy_tokenizer=tokenizer)
        case VerifierJudgeConfig():
            from actors.judges.verifier import VerifierJudge

            return VerifierJudge(config)
        case FunctionJudgeConfig():
            from actors.judges.function import FunctionJudge

            return FunctionJudge(config)
        case EndpointJudgeConfig():
            from actors.judges.http.endpoint import EndpointJudge

            return EndpointJudge(config)
        case ServedRewardModelJudgeConfig():
            from actors.judges.http.served import ServedRewardModelJudge

            return ServedRewardModelJudge(config, policy_tokenizer=tokenizer)
        case EnsembleJudgeConfig():
            from actors.judges.ensemble import EnsembleJudge

            members = [make_judge(each.judge, task=task, seed=seed, tokenizer=tokenizer) for each in config.members]
            return EnsembleJudge(config, members)
