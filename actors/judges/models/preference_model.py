"""Judge with a trained preference model: probabilities among a prompt's completions, and scores from these."""

from collections.abc import Sequence

import numpy as np

from actors.judges.config import PreferenceModelJudgeConfig
from actors.judges.models.classifier import ModelJudge
from actors.judges.models.inputs import ModelInputs, Tokens
from actors.judges.models.preference_network import Outputs, PreferenceModel, probabilities
from actors.preferences import Table, mean_win_probabilities
from actors.records import Judgement


class PreferenceModelJudge(ModelJudge):
    """Compares completions with a model trained by `offbeat preference`.

    Bradley-Terry models score by their reward, the other forms by the mean probability of being preferred.
    """

    def __init__(self, config: PreferenceModelJudgeConfig, policy_tokenizer: str | None = None) -> None:
        """Load the model. Raises UsageError if the model or a tokenizer cannot be loaded, or a GPU is missing."""
        super().__init__(config, ModelInputs(config.path, policy_tokenizer, needs_eos=True).parts)
        self._model = PreferenceModel.load(
            config.path, dtype=config.dtype, batch_tokens=config.batch_tokens, device=self._device
        )

    def _judgements(self, read: Sequence[Sequence[tuple[Tokens, Tokens]]]) -> list[Judgement]:
        prompts = [group[0][0] for group in read]
        responses = [[response for _, response in group] for group in read]
        if self._model.form.kind != "bradley_terry":
            tables = map(_table, self._model.tables(prompts, responses))
            return [Judgement(scores=mean_win_probabilities(table), preferences=table) for table in tables]
        return [
            Judgement(scores=tuple(map(float, rewards)), preferences=_table(np.subtract.outer(rewards, rewards)))
            for rewards in self._model.rewards(prompts, responses)
        ]


def _table(logits: Outputs) -> Table:
    return tuple(tuple(map(float, row)) for row in probabilities(logits))
