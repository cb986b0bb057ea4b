"""From a judge's configuration to the judge. Each kind is imported only when it is made."""

from __future__ import annotations

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
from actors.judges.protocol import Judge


def make_judge(config: JudgeKind, tokenizer: str | None = None) -> Judge:
    """Make the judge that `config` describes.

    `tokenizer` is the directory or hub name of the policy's tokenizer; with it, a judge model of the same vocabulary
    reads the sampled token ids instead of tokenising their text again.

    Raises UsageError if the settings do not make a judge.
    """
    match config:
        case GoldJudgeConfig():
            from actors.judges.world import GoldJudge

            return GoldJudge(config)
        case BradleyTerryJudgeConfig():
            from actors.judges.world import BradleyTerryJudge

            return BradleyTerryJudge(config)
        case RewardModelJudgeConfig():
            from actors.judges.models.reward_model import RewardModelJudge

            return RewardModelJudge(config, tokenizer)
        case PreferenceModelJudgeConfig():
            from actors.judges.models.preference_model import PreferenceModelJudge

            return PreferenceModelJudge(config, tokenizer)
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

            return ServedRewardModelJudge(config, tokenizer)
        case EnsembleJudgeConfig():
            from actors.judges.ensemble import EnsembleJudge

            return EnsembleJudge(config, [make_judge(member.judge, tokenizer) for member in config.members])
