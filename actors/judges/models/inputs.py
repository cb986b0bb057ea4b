"""What a reward model reads: the token ids of a prompt with a completion. It must not know models or servers."""

from __future__ import annotations

from actors.data.prompts import load_tokenizer, without_trailing
from actors.records import Completion, Prompt


class RewardModelInputs:
    """Writes prompt and completion in the vocabulary of a reward model."""

    def __init__(self, tokenizer: str, policy_tokenizer: str | None = None) -> None:
        """Loads the tokenizers.

        Args:
            tokenizer: directory or hub name of the reward model's tokenizer.
            policy_tokenizer: the same of the policy's; where both have one vocabulary, the sampled ids are used.

        Raises:
            UsageError: one of them cannot be loaded.
        """
        self._tokenizer = load_tokenizer(tokenizer, needs_eos=False)
        policy = None if policy_tokenizer is None else load_tokenizer(policy_tokenizer)
        self.same_vocabulary = policy is not None and policy.get_vocab() == self._tokenizer.get_vocab()
        self._same_template = policy is not None and policy.chat_template == self._tokenizer.chat_template

    def token_ids(self, prompt: Prompt, completion: Completion) -> list[int]:
        """What the model reads: the sampled ids where the vocabulary is the policy's, else the text tokenised again.

        Prompt and completion are tokenised apart, as they were when sampled, so that what a tokenizer writes around a
        prompt stays around the prompt; a finished completion ends with the judge's own end-of-sequence token. Chat
        prompts are written in the judge's own template where it has one, which ends the answer itself.
        """
        messages = prompt.metadata.get("messages")
        own_template = self._tokenizer.chat_template is not None
        if self.same_vocabulary and (messages is None or self._same_template or not own_template):
            return [*prompt.token_ids, *completion.token_ids]
        if messages is not None and own_template:
            conversation = [*messages, {"role": "assistant", "content": completion.text}]
            text = self._tokenizer.apply_chat_template(conversation, tokenize=False)
            return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        eos = self._tokenizer.eos_token_id
        before = without_trailing(self._tokenizer(prompt.text, verbose=False)["input_ids"], eos)
        answer = self._tokenizer(completion.text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*before, *answer, eos] if completion.finished and eos is not None else [*before, *answer]
