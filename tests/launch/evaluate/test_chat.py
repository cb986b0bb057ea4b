"""Talking to a model: turns, what is forgotten, and what a pipe gets."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from actors.errors import UsageError
from launch.cli import main
from launch.evaluate.chat import Conversation
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model


class Letters:
    """One token per letter; a chat is its messages in brackets."""

    chat_template: str | None = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "".join(f"[{each['content']}]" for each in messages)

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: torch.Tensor, **options: Any) -> str:
        return "".join(chr(number) for number in ids.tolist())


class Echo:
    """Answers with the number of tokens that it was given; remembers how it was asked to sample."""

    device = "cpu"

    def generate(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.asked = options
        answer = torch.tensor([[ord(letter) for letter in str(ids.shape[1])]])
        return torch.cat([ids, answer], dim=1)


def conversation(context: int | None = None, temperature: float = 0.7) -> Conversation:
    return Conversation(Echo(), Letters(), (2, 5), 4, temperature, context)


def test_every_turn_sees_those_before_it():
    """`[abc]` has five tokens; `[abc][5][d]` has eleven."""
    chat = conversation()
    assert (chat.answer("abc"), chat.answer("d")) == ("5", "11")
    assert [each["role"] for each in chat.messages] == ["user", "assistant"] * 2


def test_the_oldest_turns_are_forgotten_and_the_system_message_stays():
    """Of `[sys][abc][10][d]`, 17 tokens, and 4 for an answer, 20 have room for `[sys][d]` alone, which has 8."""
    chat = conversation(context=20)
    chat.messages.append({"role": "system", "content": "sys"})
    assert (chat.answer("abc"), chat.answer("d")) == ("10", "8")
    assert [each["content"] for each in chat.messages] == ["sys", "d", "8"]


def test_a_question_that_is_too_long_is_refused_and_the_conversation_goes_on():
    chat = conversation(context=10)
    with pytest.raises(UsageError, match="the question has 12 tokens, and the model takes 10 with an answer of 4"):
        chat.answer("0123456789")
    assert chat.answer("abc") == "5"


def test_temperature_zero_takes_the_likeliest_token_and_every_end_of_the_model_ends_an_answer():
    greedy, sampling = conversation(temperature=0.0), conversation(temperature=0.5)
    greedy.answer("a")
    sampling.answer("a")
    assert greedy.model.asked["do_sample"] is False
    assert (sampling.model.asked["temperature"], sampling.model.asked["top_k"]) == (0.5, 0)
    assert sampling.model.asked["eos_token_id"] == [2, 5]


def test_a_model_without_a_chat_template_goes_on_from_the_question(monkeypatch):
    monkeypatch.setattr(Letters, "chat_template", None)
    chat = conversation()
    assert (chat.answer("abc"), chat.answer("d")) == ("3", "1")


def test_every_line_of_a_pipe_gets_an_answer_of_a_real_model(tmp_path, monkeypatch, capsys):
    texts = ["What is it? It is a test."] * 50
    make_model(tmp_path / "model", texts, ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=64, seed=0))
    monkeypatch.setattr("sys.stdin", io.StringIO("What\n\nis it?\n"))
    assert main(["chat", str(tmp_path / "model"), "--max-new-tokens", "3", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert len(said.out.split("\n")) >= 3
    assert said.err.startswith(f"offbeat: loading {tmp_path / 'model'}\n"), "a large one takes minutes"


def test_a_model_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_question_of_another_encoding_is_refused_and_forgotten():
    """The tokenizer raised a TypeError, which ended the conversation."""
    chat = conversation()
    with pytest.raises(UsageError, match="the question is not UTF-8; convert it"):
        chat.answer("caf\udce9")
    assert chat.answer("abc") == "5"


def test_a_system_message_of_another_encoding_is_refused_before_the_model_is_read(capsys):
    assert main(["chat", "nothere", "--system", "caf\udce9"]) == 2
    assert "--system is not UTF-8" in capsys.readouterr().err
