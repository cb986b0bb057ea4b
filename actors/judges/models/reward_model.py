"""Judge with a Bradley-Terry reward model: one logit of a sequence-classification model per completion.

Score r(x, y) as in Ouyang et al. 2022, equation 1, read at the last token, without normalisation and without KL term.
"""

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from actors.errors import JUDGE_MEMORY, UsageError, oom_hint
from actors.hub import resolve
from actors.judges.config import RewardModelJudgeConfig
from actors.judges.models.classifier import ModelJudge, check_lengths, collate, in_batches, load_classifier, positions
from actors.judges.models.inputs import ModelInputs
from actors.judges.models.preference_network import FORM_FILE
from actors.records import Judgement

logger = logging.getLogger(__name__)


class RewardModelJudge(ModelJudge):
    """Scores prompt + completion with any Hugging Face sequence-classification model of one label."""

    def __init__(self, config: RewardModelJudgeConfig, policy_tokenizer: str | None = None) -> None:
        """Load the model.

        Raises UsageError if the model or a tokenizer cannot be loaded, the model does not have exactly one label, its
        score head is missing, or a GPU is configured but missing.
        """
        # A preference model was trained to be read at the end of the answer, others after all of their chat template.
        ours = (resolve(config.path) / FORM_FILE).is_file()
        inputs = ModelInputs(config.path, policy_tokenizer, needs_eos=ours)
        super().__init__(config, inputs.joined if ours else inputs.sequence)
        self._config = config
        self._model = load_reward_model(config).to(self._device)
        self._pad_token_id: int | None = self._model.config.get_text_config().pad_token_id
        logger.info("reward model %s reads %s", config.path, "token ids" if inputs.same_vocabulary else "text")

    def _judgements(self, read: Sequence[Sequence[Sequence[int]]]) -> list[Judgement]:
        sequences = [sequence for group in read for sequence in group]
        check_lengths(sequences, positions(self._model), "completion", f"the reward model '{self._config.path}'")
        scores = iter(in_batches(self._forward, sequences, self._config.batch_tokens))
        return [Judgement(scores=tuple(islice(scores, len(group)))) for group in read]

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the logits of one right-padded batch, [b]."""
        pad = self._pad_token_id
        if pad is None:
            # Hugging Face models take the last token that is not padding for a sequence's end, and refuse a batch
            # without a padding token. Any id that ends no sequence of the batch marks the ends correctly.
            pad = _unused_ending(sequences)
            self._model.config.get_text_config().pad_token_id = pad
        input_ids, ends = collate(sequences, self._device, pad)
        mask = torch.arange(input_ids.shape[1], device=self._device) <= ends[:, None]
        with oom_hint("the reward model", JUDGE_MEMORY):
            return self._model(input_ids, attention_mask=mask.long()).logits[:, 0].float().tolist()


def _unused_ending(sequences: Sequence[Sequence[int]]) -> int:
    """Return the smallest token id that ends none of `sequences`."""
    endings = {sequence[-1] for sequence in sequences}
    return next(token for token in range(len(endings) + 1) if token not in endings)


def load_reward_model(config: RewardModelJudgeConfig) -> Any:
    """Load the model on the CPU. Raises UsageError if it cannot be loaded or is not a reward model."""
    model, _ = load_classifier(config.path, None, config.dtype)
    if model.config.num_labels != 1:
        raise UsageError(
            f"the model in '{config.path}' has {model.config.num_labels} labels; a reward model has exactly 1 "
            "(num_labels in its config.json)"
        )
    return model
