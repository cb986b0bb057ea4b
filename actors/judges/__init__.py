"""Judges: what turns a prompt's completions into scores. One protocol, one factory, one module per kind.

Each kind is imported only when it is asked for. Judges must not know leases, buffers or how judgements become pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from actors.config import (
    BradleyTerryJudgeConfig,
    FunctionJudgeConfig,
    GoldJudgeConfig,
    JudgeKind,
    RewardModelJudgeConfig,
    VerifierJudgeConfig,
)
from actors.records import Group, Judgement


class Judge(Protocol):
    """Anything that scores groups. It may fail: `retrying.judge_with_retries` handles errors, nonsense and silence."""

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One judgement per group, in order, each with one finite score per completion."""
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
            from actors.judges.bradley_terry import BradleyTerryJudge

            return BradleyTerryJudge(task, seed)
        case RewardModelJudgeConfig():
            from actors.judges.reward_model import RewardModelJudge

            return RewardModelJudge(config, policy_tokenizer=tokenizer)
        case VerifierJudgeConfig():
            from actors.judges.verifier import VerifierJudge

            return VerifierJudge(config)
        case FunctionJudgeConfig():
            from actors.judges.function import FunctionJudge

            return FunctionJudge(config)
