"""Token ids that a judge model reads for a prompt and a completion. Must not import torch."""

from collections.abc import Sequence

from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.preferences import preference_tokens
from actors.data.text import load_tokenizer, without_trailing
from actors.errors import UsageError
from actors.records import Completion, Prompt

Tokens = tuple[int, ...]


class ModelInputs:
    """Writes prompts and completions in a judge model's vocabulary, with the sampled token ids if it is the policy's.

    Otherwise they are tokenised again, prompt and completion separately, as they were when sampled. A finished
    completion ends with the judge's own end-of-sequence token.
    """

    def __init__(self, tokenizer: str, policy_tokenizer: str | None = None, *, needs_eos: bool = False) -> None:
        """Load the tokenizers of directories or hub names. Raises UsageError if one cannot be loaded."""
        self._tokenizer = load_tokenizer(tokenizer, needs_eos=needs_eos)
        policy = None if policy_tokenizer is None else load_tokenizer(policy_tokenizer)
        self.same_vocabulary = policy is not None and policy.get_vocab() == self._tokenizer.get_vocab()
        self._same_template = policy is not None and policy.chat_template == self._tokenizer.chat_template

    def sequence(self, prompt: Prompt, completion: Completion) -> Sequence[int]:
        """Return the one sequence that a reward model reads.

        A chat is written in the judge's own template, if it has one, which also ends the answer.
        """
        messages = None if self._tokenizer.chat_template is None else prompt.metadata.get("messages")
        if self.same_vocabulary and (messages is None or self._same_template):
            return [*prompt.token_ids, *completion.token_ids]
        if messages is not None:
            conversation = [*messages, {"role": "assistant", "content": completion.text}]
            return self._encode(self._tokenizer.apply_chat_template(conversation, tokenize=False))
        eos = self._tokenizer.eos_token_id
        before = without_trailing(self._tokenizer(prompt.text, verbose=False)["input_ids"], eos)
        end = [eos] if completion.finished and eos is not None else []
        return [*before, *self._encode(completion.text), *end]

    def parts(self, prompt: Prompt, completion: Completion) -> tuple[Tokens, Tokens]:
        """Return prompt and completion as a preference model reads them, tokenised as in its training.

        Raises UsageError if the judge's chat template refuses the chat.
        """
        messages = prompt.metadata.get("messages")
        if self.same_vocabulary and (messages is None or self._same_template):
            return prompt.token_ids, completion.token_ids
        row = PreferenceRow(prompt.text if messages is None else list(messages), completion.text, completion.text)
        tokens = preference_tokens([row], self._tokenizer)[0]
        if isinstance(tokens, MalformedPreferenceError):
            raise UsageError(f"prompt {prompt.id!r} cannot be judged: {tokens}; use a judge with another chat template")
        return tuple(tokens.prompt), tuple(tokens.chosen if completion.finished else tokens.chosen[:-1])

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
