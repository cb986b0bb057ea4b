"""Perplexity of responses under a policy, and sampling from it. Must not depend on preferences."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from actors.data.text import closed
from actors.errors import UsageError
from learner.backend.models import load_policy
from learner.tensors.batching import (
    AnySequence,
    TokenSequence,
    collate,
    length_of,
    sampled_length,
    schedule,
    sum_by_sequence,
)


class PerplexityModel:
    """A causal language model that scores and samples responses in batches."""

    def __init__(
        self, directory: Path, *, dtype: str = "float32", device: str = "cpu", micro_batch_tokens: int = 8192
    ) -> None:
        """Load the Hugging Face model in `directory`; `micro_batch_tokens` are the padded tokens per forward pass.

        Raises UsageError if the model cannot be loaded, or has no linear head over a decoder.
        """
        self._policy = load_policy(directory, dtype).to(device).eval()
        self._device = device
        self._micro_batch_tokens = micro_batch_tokens
        config = self._policy.model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        """Context length (tokens), prompt and response together; None if the model's configuration has none."""
        self._vocabulary = int(config.vocab_size)

    @torch.no_grad()
    def log_perplexities(self, sequences: Sequence[AnySequence]) -> NDArray[np.float64]:
        """Compute the log-perplexity [n] (nats per token) of each response y given its prompt x:

            log ppl(y | x) = -(1 / |y|) sum_t log pi(y_t | x, y_<t)

        over the sampled tokens of y. The sum includes end-of-sequence if `sequences` hold it. Raises UsageError for an
        empty prompt or response, or token ids outside the model's vocabulary.
        """
        largest = max((max(*each[0], *each[1]) for each in sequences if each[0] and each[1]), default=0)
        if largest >= self._vocabulary:
            raise UsageError(
                f"token id {largest} is outside the model's vocabulary of {self._vocabulary}; use the model's own "
                "tokenizer"
            )
        result = np.empty(len(sequences), dtype=np.float64)
        lengths = [length_of(sequence) for sequence in sequences]
        for ((*indices,),) in schedule(lengths, 1, 1, self._micro_batch_tokens):
            batch = collate([sequences[index] for index in indices], self._device)
            logprobs = self._policy(batch)
            counts = torch.tensor([sampled_length(sequences[index]) for index in indices])
            result[indices] = (-sum_by_sequence(logprobs, batch.rows, len(indices)).cpu().double() / counts).numpy()
        return result

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, ends: Sequence[int], seed: int
    ) -> list[TokenSequence]:
        """Sample one response per prompt at temperature 1, untruncated.

        A response ends with one of `ends` unless it reaches `max_new_tokens`, or its batch reaches the model's context;
        prompts that fill the context are left out. The same `seed` gives the same responses on the same machine. The
        global random state is restored.
        """
        if self.context is not None:
            prompts = [prompt for prompt in prompts if len(prompt) < self.context]
        sampled: list[TokenSequence] = []
        devices = [self._device] if self._device.startswith("cuda") else []
        lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for ((*indices,),) in schedule(lengths, 1, 1, self._micro_batch_tokens):
                sampled += self._sample_batch([prompts[index] for index in indices], max_new_tokens, ends)
        return sampled

    def _sample_batch(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int]
    ) -> list[TokenSequence]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), ends[0], dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        room = max_new_tokens if self.context is None else min(max_new_tokens, self.context - longest)
        # Overrides the model directory's generation settings, which may truncate the distribution.
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=room,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
        model = self._policy.model
        model.generation_config = settings
        output = model.generate(ids.to(self._device), attention_mask=mask.to(self._device), generation_config=settings)
        responses = [row[longest:].tolist() for row in output]
        return [
            (list(prompt), closed(response, ends) or response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
