"""A Bradley-Terry reward model as a judge: one logit of a sequence-classification model per completion.

Score r(x, y) as in Ouyang et al. 2022, equation 1, read at the last token. No normalisation and no KL term are added.
It must not know what scores are used for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from actors.errors import JUDGE_MEMORY, RunError, UsageError, saying_what_to_lower
from actors.hub import require_safetensors
from actors.judges.config import RewardModelJudgeConfig
from actors.judges.models.inputs import RewardModelInputs
from actors.judges.threads import in_daemon_thread
from actors.records import Group, Judgement

logger = logging.getLogger(__name__)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of like length, longest first; count x longest of each batch is at most `batch_tokens`.

    A sequence longer than `batch_tokens` is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def unused_ending(sequences: Sequence[Sequence[int]]) -> int:
    """The smallest token id that ends none of `sequences`."""
    endings = {sequence[-1] for sequence in sequences}
    return next(token for token in range(len(endings) + 1) if token not in endings)


class RewardModelJudge:
    """Scores prompt + completion with any Hugging Face sequence-classification model of one label."""

    def __init__(self, config: RewardModelJudgeConfig, policy_tokenizer: str | None = None) -> None:
        """Loads the model.

        Args:
            config: path, dtype, batch size and GPUs.
            policy_tokenizer: directory or hub name of the policy's tokenizer; where its vocabulary is the judge's own,
                the sampled token ids are scored themselves.

        Raises:
            UsageError: the model or its tokenizer cannot be loaded, it has not exactly one label, its score head is
                missing, or a GPU is asked for and there is none.
        """
        if config.gpus > 0 and not torch.cuda.is_available():
            raise UsageError(f"judge.gpus is {config.gpus:g}, but torch finds no CUDA device here; set judge.gpus to 0")
        self._config = config
        self._device = torch.device("cuda" if config.gpus > 0 else "cpu")
        self._inputs = RewardModelInputs(config.path, policy_tokenizer)
        self.token_ids = self._inputs.token_ids
        self._model = _load_model(config).to(self._device)
        text_config = self._model.config.get_text_config()
        self._pad_token_id: int | None = text_config.pad_token_id
        self._longest: int | None = getattr(text_config, "max_position_embeddings", None)
        self._forward_lock = threading.Lock()
        logger.info("reward model %s reads %s", config.path, "token ids" if self._inputs.same_vocabulary else "text")

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Scores of all completions; the forward passes run in a thread.

        Raises:
            RunError: a sequence is longer than the model's positions.
        """
        sequences = [self.token_ids(group.lease.prompt, one) for group in groups for one in group.completions]
        for sequence in sequences:
            if self._longest is not None and len(sequence) > self._longest:
                raise RunError(
                    f"a prompt with its completion is {len(sequence)} tokens for the reward model "
                    f"'{self._config.path}', which has {self._longest} positions; lower prompts.max_prompt_tokens or "
                    "sampling.max_new_tokens"
                )
        scores = iter(await in_daemon_thread(lambda: self._score(sequences)))
        return [Judgement(scores=tuple(next(scores) for _ in group.completions)) for group in groups]

    def _score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        # A forward pass whose caller gave up still runs; the next one waits for it instead of competing with it.
        with self._forward_lock:
            scores = [0.0] * len(sequences)
            for batch in batches_by_length([len(sequence) for sequence in sequences], self._config.batch_tokens):
                values = self._forward([sequences[index] for index in batch])
                for index, value in zip(batch, values, strict=True):
                    scores[index] = value
            return scores

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Logits of one right-padded batch, [b]."""
        pad = self._pad_token_id
        if pad is None:
            # Hugging Face models find a sequence's end as its last token that is not padding, and refuse a batch
            # without a padding token. Any id that ends no sequence here marks the ends rightly.
            pad = unused_ending(sequences)
            self._model.config.get_text_config().pad_token_id = pad
        longest = max(map(len, sequences))
        input_ids = torch.full((len(sequences), longest), pad)
        attention_mask = torch.zeros_like(input_ids)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = torch.tensor(sequence)
            attention_mask[row, : len(sequence)] = 1
        with saying_what_to_lower("the reward model", JUDGE_MEMORY):
            output = self._model(input_ids.to(self._device), attention_mask=attention_mask.to(self._device))
        return output.logits[:, 0].float().tolist()


def _load_model(config: RewardModelJudgeConfig) -> Any:
    local = Path(config.path).expanduser()
    require_safetensors(local)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(local) if local.is_dir() else config.path,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no reward model can be loaded from '{config.path}': {error}; give the directory or hub name of a "
            "sequence-classification model"
        ) from error
    if model.config.num_labels != 1:
        raise UsageError(
            f"the model in '{config.path}' has {model.config.num_labels} labels; a reward model has exactly 1 "
            "(num_labels in its config.json)"
        )
    if loading["missing_keys"]:
        raise UsageError(
            f"'{config.path}' lacks the weights {sorted(loading['missing_keys'])}, which would be random; "
            "is it a language model instead of a reward model?"
        )
    return model.eval()
