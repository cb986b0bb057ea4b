"""A trained preference model as a judge: probabilities among a prompt's completions, and scores made of them.

Bradley-Terry models score by their reward, the others by the mean probability of being preferred. It must not know what
judgements are used for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.preference_tokens import preference_tokens
from actors.data.prompts import load_tokenizer
from actors.errors import UsageError
from actors.judges.config import PreferenceModelJudgeConfig
from actors.judges.models.preference_network import PreferenceModel, Tokens, probabilities
from actors.judges.threads import in_daemon_thread
from actors.records import Completion, Group, Judgement, Prompt
from actors.replay_buffer.pairing import mean_win_probabilities


class PreferenceModelJudge:
    """Compares completions with a model that `offbeat preference` has trained."""

    def __init__(self, config: PreferenceModelJudgeConfig, policy_tokenizer: str | None = None) -> None:
        """Loads the model.

        Args:
            config: path, dtype, batch size and GPUs.
            policy_tokenizer: directory or hub name of the policy's tokenizer; where its vocabulary and chat template
                are the judge's own, the sampled token ids are read themselves.

        Raises:
            UsageError: the model or its tokenizer cannot be loaded, or a GPU is asked for and there is none.
        """
        if config.gpus > 0 and not torch.cuda.is_available():
            raise UsageError(f"judge.gpus is {config.gpus:g}, but torch finds no CUDA device here; set judge.gpus to 0")
        self._tokenizer = load_tokenizer(config.path)
        policy = None if policy_tokenizer is None else load_tokenizer(policy_tokenizer)
        self._same_vocabulary = policy is not None and policy.get_vocab() == self._tokenizer.get_vocab()
        self._same_template = policy is not None and policy.chat_template == self._tokenizer.chat_template
        self._model = PreferenceModel.load(
            config.path,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
            device="cuda" if config.gpus > 0 else "cpu",
        )
        self._forward_lock = threading.Lock()

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Preferences of all pairs of each group; the forward passes run in a thread.

        Raises:
            RunError: a sequence is longer than the model's positions.
            UsageError: a completion cannot be written in the judge's own chat template.
        """
        read = [[self.token_ids(group.lease.prompt, one) for one in group.completions] for group in groups]
        return await in_daemon_thread(lambda: self._judge(read))

    def token_ids(self, prompt: Prompt, completion: Completion) -> tuple[Tokens, Tokens]:
        """Prompt and completion as the model reads them: the sampled ids where the policy writes as the judge does.

        Otherwise both are tokenised as they are in training; a finished completion ends with end-of-sequence.
        """
        messages = prompt.metadata.get("messages")
        if self._same_vocabulary and (messages is None or self._same_template):
            return prompt.token_ids, completion.token_ids
        row = PreferenceRow(prompt.text if messages is None else list(messages), completion.text, completion.text)
        tokens = preference_tokens([row], self._tokenizer)[0]
        if isinstance(tokens, MalformedPreferenceError):
            raise UsageError(f"prompt {prompt.id!r} cannot be judged: {tokens}; use a judge with another chat template")
        return tuple(tokens.prompt), tuple(tokens.chosen if completion.finished else tokens.chosen[:-1])

    def _judge(self, read: Sequence[Sequence[tuple[Tokens, Tokens]]]) -> list[Judgement]:
        prompts = [group[0][0] for group in read]
        responses = [[response for _, response in group] for group in read]
        # A forward pass whose caller gave up still runs; the next one waits for it instead of competing with it.
        with self._forward_lock:
            tables = [probabilities(table) for table in self._model.tables(prompts, responses)]
            rewards = self._model.rewards(prompts, responses) if self._model.form.kind == "bradley_terry" else None
        judgements = []
        for number, table in enumerate(tables):
            preferences = tuple(tuple(map(float, row)) for row in table)
            scores = mean_win_probabilities(preferences) if rewards is None else map(float, rewards[number])
            judgements.append(Judgement(scores=tuple(scores), preferences=preferences))
        return judgements
