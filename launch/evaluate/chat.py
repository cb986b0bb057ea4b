"""`offbeat chat`: talk to a model in the terminal, or pipe questions to it, one a line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.foreign.text import WHOLE, shown
from actors.hub import answer_ends, resolve
from launch.evaluate.compare import model_of


@dataclass(slots=True)
class Conversation:
    """Turns so far, and what writes the next one."""

    model: Any
    tokenizer: Any
    ends: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    context: int | None
    """Tokens that the model takes; None: any number."""
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str) -> str:
        """Sample the next turn and keep it. Forgets the oldest turns that leave no room for an answer.

        Raises UsageError if the question alone leaves none, or is no text.
        """
        import torch

        _require_text("the question", question)
        self.messages.append({"role": "user", "content": question})
        ids = self._prompt()
        while self.context is not None and len(ids) + self.max_new_tokens > self.context:
            if not self._forget():
                self.messages.pop()
                raise UsageError(
                    f"the question has {len(ids)} tokens, and the model takes {self.context} with an answer of "
                    f"{self.max_new_tokens}; shorten it, or lower --max-new-tokens"
                )
            ids = self._prompt()
        given = torch.tensor([ids], device=self.model.device)
        sampled = self.temperature > 0.0
        with torch.inference_mode():
            out = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=self.max_new_tokens,
                do_sample=sampled,
                **({"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}),
                eos_token_id=list(self.ends),
                pad_token_id=self.ends[0],
            )
        text = str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text

    def _prompt(self) -> list[int]:
        """Write the turns in the chat template; a model without one goes on from the last question alone."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(self.messages[-1]["content"])["input_ids"])

    def _forget(self) -> bool:
        """Drop the oldest question and its answer; return False if there is only the last question."""
        first = 1 if self.messages[0]["role"] == "system" else 0
        if len(self.messages) - first < 3:
            return False
        del self.messages[first : first + 2]
        return True


def run_chat(name: str, *, system: str | None, max_new_tokens: int, temperature: float) -> int:
    """Answer every line of standard input until its end; return the exit code 0. Raises UsageError."""
    _require_text("--system", system or "")
    conversation = _begin(name, max_new_tokens, temperature)
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})
    here = sys.stdin.isatty()
    if here:
        print(shown(f"{name}; Ctrl-D ends"), file=sys.stderr)
    for answer in _answers(conversation, _lines(here)):
        print(shown(answer, WHOLE, lines=True), flush=True)
    return 0


def _require_text(what: str, text: str) -> None:
    """Raise UsageError for bytes of another encoding, which Python passes on as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8; convert it, for example with iconv") from None


def _begin(name: str, max_new_tokens: int, temperature: float) -> Conversation:
    import torch

    from learner.backend.models import load_model

    directory = resolve(model_of(name))
    print(shown(f"offbeat: loading {name}"), file=sys.stderr, flush=True)
    tokenizer = load_tokenizer(str(directory))
    gpu = torch.cuda.is_available()
    model: Any = load_model(Path(directory), "bfloat16" if gpu else "float32")
    context = getattr(model.config, "max_position_embeddings", None)
    model = model.to("cuda" if gpu else "cpu")
    return Conversation(model, tokenizer, answer_ends(directory, tokenizer), max_new_tokens, temperature, context)


def _lines(here: bool) -> Iterator[str]:
    while True:
        try:
            yield input("> ") if here else next(sys.stdin)
        except (EOFError, StopIteration):
            return


def _answers(conversation: Conversation, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            try:
                yield conversation.answer(line.strip())
            except UsageError as error:
                yield f"({error})"
