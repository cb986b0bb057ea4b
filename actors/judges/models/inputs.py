"""Token ids that a judge model reads for a prompt and a completion. Must not import torch."""

from collections.abc import Sequence

from actors.data.conversations import BrokenConversationError, closing, conversation_tokens, render, written
from actors.data.rows import MalformedRowError
from actors.data.text import encoded, load_tokenizer, prompt_token_ids
from actors.errors import UsageError
from actors.hub import answer_ends, resolve
from actors.records import Completion, Prompt

Tokens = tuple[int, ...]
REMEMBERED = 4096  # prompts whose template has been compared


class ModelInputs:
    """Writes prompts and completions in a judge model's vocabulary.

    If the vocabulary is the policy's, the sampled token ids are used; otherwise the texts are tokenised again, as in
    the training of preference models. A finished completion always ends as the judge's own chat template ends an
    answer, or with end-of-sequence, whatever token ended it when it was sampled.
    """

    def __init__(self, tokenizer: str, policy_tokenizer: str | None = None, *, needs_eos: bool = False) -> None:
        """Load the tokenizers of directories or hub names. Raises UsageError if one cannot be loaded."""
        self._tokenizer = load_tokenizer(tokenizer, needs_eos=needs_eos)
        self._ends = answer_ends(resolve(tokenizer, weights=False), self._tokenizer) if needs_eos else ()
        policy = None if policy_tokenizer is None else load_tokenizer(policy_tokenizer)
        self.same_vocabulary = policy is not None and policy.get_vocab() == self._tokenizer.get_vocab()
        self.has_template = bool(self._tokenizer.chat_template)
        self._closings: dict[bool, list[int]] = {}
        self._own: dict[str, bool] = {}  # by prompt id

    def sequence(self, prompt: Prompt, completion: Completion) -> Sequence[int]:
        """Return the one sequence that a reward model reads.

        A chat is written in the judge's own template, if there is one; it also ends the answer.
        """
        messages = None if self._tokenizer.chat_template is None else prompt.metadata.get("messages")
        if self.same_vocabulary and (messages is None or self._is_own(prompt)):
            return [*prompt.token_ids, *self._sampled(completion, chat=messages is not None, whole=True)]
        if messages is not None:
            conversation = [*messages, {"role": "assistant", "content": completion.text}]
            text = self._tokenizer.apply_chat_template(conversation, tools=prompt.metadata.get("tools"), tokenize=False)
            return encoded([text], self._tokenizer, add_special_tokens=False)[0]
        eos = self._tokenizer.eos_token_id
        (before,) = prompt_token_ids([prompt.text], [False], self._tokenizer)
        end = [eos] if completion.finished and eos is not None else []
        return [*before, *encoded([completion.text], self._tokenizer, add_special_tokens=False)[0], *end]

    def parts(self, prompt: Prompt, completion: Completion) -> tuple[Tokens, Tokens]:
        """Return prompt and completion as a preference model reads them, tokenised as in its training.

        Raises UsageError if the judge's chat template refuses the chat.
        """
        messages = prompt.metadata.get("messages")
        if self.same_vocabulary and (messages is None or self._is_own(prompt)):
            return prompt.token_ids, tuple(self._sampled(completion, chat=messages is not None, whole=False))
        try:
            asked = prompt.text if messages is None else messages
            tools = prompt.metadata.get("tools")
            conversation = written(asked, completion.text, self._tokenizer, "a prompt", tools=tools, checked=False)
        except MalformedRowError as error:
            raise UsageError(
                f"prompt {prompt.id!r} cannot be judged: {error}; use a judge with another chat template"
            ) from error
        (tokens,) = conversation_tokens([conversation], self._tokenizer, self._ends, checked=False)
        if isinstance(tokens, BrokenConversationError):
            raise tokens  # never happens: unchecked conversations give no errors
        before, answer = tokens
        return tuple(before), tuple(answer if completion.finished else answer[:-1])

    def joined(self, prompt: Prompt, completion: Completion) -> Tokens:
        """Join `parts` to one sequence, for a preference model that is used as a reward model."""
        before, answer = self.parts(prompt, completion)
        return (*before, *answer)

    def _is_own(self, prompt: Prompt) -> bool:
        """Return whether the policy read the chat as the judge's own template writes it."""
        if prompt.id not in self._own:
            try:
                given = prompt.metadata
                text = render(given["messages"], self._tokenizer, "a prompt", tools=given.get("tools"), checked=False)
            except (MalformedRowError, UsageError):
                return False
            if len(self._own) == REMEMBERED:
                del self._own[next(iter(self._own))]
            self._own[prompt.id] = tuple(prompt_token_ids([text], [True], self._tokenizer)[0]) == prompt.token_ids
        return self._own[prompt.id]

    def _sampled(self, completion: Completion, *, chat: bool, whole: bool) -> list[int]:
        """Return the sampled ids. A finished completion ends as in training, or with the template's `whole` end.

        A policy can have several end tokens, and a score read at another token than in training would differ.
        """
        ids = list(completion.token_ids)
        if not completion.finished or not ids:
            return ids
        if chat not in self._closings:
            try:
                self._closings[chat] = closing(self._tokenizer, self._ends, chat=chat, whole=whole)
            except MalformedRowError:  # the template refuses the chat that would show its end
                self._closings[chat] = ids[-1:]
        after = self._closings[chat]
        said = ids[: -len(after)] if ids[-len(after) :] == after else ids[:-1]
        return [*said, *after]
