"""Make a judge from its configuration. Each kind is imported only when a judge of it is made."""

from actors.judges import config as kinds
from actors.judges.protocol import Judge


def make_judge(config: kinds.JudgeKind, tokenizer: str | None = None) -> Judge:
    """Make the judge that `config` describes.

    `tokenizer` is the directory or hub name of the policy's tokenizer; with it, a judge model of the same vocabulary
    reads the sampled token ids instead of tokenising their text again.

    Raises UsageError if the settings do not make a judge.
    """
    match config:
        case kinds.GoldJudgeConfig():
            from actors.judges.world import GoldJudge

            return GoldJudge(config)
        case kinds.BradleyTerryJudgeConfig():
            from actors.judges.world import BradleyTerryJudge

            return BradleyTerryJudge(config)
        case kinds.RewardModelJudgeConfig():
            from actors.judges.models.reward_model import RewardModelJudge

            return RewardModelJudge(config, tokenizer)
        case kinds.PreferenceModelJudgeConfig():
            from actors.judges.models.preference_model import PreferenceModelJudge

            return PreferenceModelJudge(config, tokenizer)
        case kinds.VerifierJudgeConfig():
            from actors.judges.answers.verifier import VerifierJudge

            return VerifierJudge(config)
        case kinds.CodeJudgeConfig():
            from actors.judges.answers.code import CodeJudge

            return CodeJudge(config)
        case kinds.InstructionsJudgeConfig():
            from actors.judges.answers.instructions import InstructionsJudge

            return InstructionsJudge(config)
        case kinds.FunctionJudgeConfig():
            from actors.judges.functions.judge import FunctionJudge

            return FunctionJudge(config)
        case kinds.EndpointJudgeConfig():
            from actors.judges.http.endpoint import EndpointJudge

            return EndpointJudge(config)
        case kinds.ServedRewardModelJudgeConfig():
            from actors.judges.http.served import ServedRewardModelJudge

            return ServedRewardModelJudge(config, tokenizer)
        case kinds.EnsembleJudgeConfig():
            from actors.judges.ensemble import EnsembleJudge

            return EnsembleJudge(config, [make_judge(member.judge, tokenizer) for member in config.members])
