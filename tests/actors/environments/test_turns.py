"""What stands between two turns of the policy, in every style of chat template, against the whole chat's own tokens."""

from pathlib import Path

import pytest

from actors.data.conversations import render
from actors.environments.turns import tokens_between
from tests.fakes.chat_styles import STYLES, style_tokenizer
from tests.fakes.models import tiny_llama


@pytest.mark.parametrize("name", STYLES)
def test_a_reply_has_the_tokens_that_it_has_in_the_whole_chat(name: str) -> None:
    tokenizer = style_tokenizer(STYLES[name])
    end = tokenizer.convert_tokens_to_ids(STYLES[name].end)
    between = tokens_between({"role": "user", "content": "red"}, tokenizer, [end], closed=True)
    says = [("user", "north"), ("assistant", "blue"), ("user", "red")]
    whole = render([{"role": role, "content": text} for role, text in says], tokenizer, "a chat")
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[-len(between) :] == between
    assert ids[-len(between) - 1] == end


def test_a_tokenizer_of_whole_words_keeps_the_word_of_a_reply(tmp_path: Path) -> None:
    """It reads a text that it does not know, such as a word behind another letter, as one unknown word."""
    from transformers import AutoTokenizer

    tiny_llama(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokens_between({"role": "user", "content": "w5"}, tokenizer, [1], closed=True) == [5]
