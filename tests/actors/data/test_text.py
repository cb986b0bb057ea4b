"""Tokenizers that load, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from actors.data.config import PromptConfig
from actors.data.prompts import PromptSource
from actors.data.rows import MalformedRowError
from actors.data.text import chat_or_value, encoded, holds_bos, load_tokenizer
from actors.errors import UsageError
from actors.foreign.model_place import PRETRAINED
from tests.actors.data.test_prompts import BOS, EOS, UNK, W0, make_tokenizer


def test_a_saved_tokenizer_is_loaded(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("w1 w2")["input_ids"] == [BOS, W0 + 1, W0 + 2, EOS]


def test_a_missing_tokenizer_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_tokenizer(str(tmp_path / "missing"))


def test_the_pretrained_model_s_absence_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist .*; `make pretrained` writes models/smollm2-135m-instruct"):
        load_tokenizer(str(tmp_path / "models" / PRETRAINED))


def test_a_directory_without_or_with_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_end_of_sequence_is_refused_unless_it_only_reads(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), needs_eos=False).eos_token_id is None


def test_a_word_that_the_tokenizer_has_no_token_for_is_a_mistake_in_the_request(tmp_path: Path) -> None:
    """A word-level vocabulary without an unknown token."""
    from actors import world

    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "stone"}) + "\n" + json.dumps({"prompt": "marble"}) + "\n")
    with pytest.raises(UsageError, match=r"the tokenizer cannot read the data: .*unknown token"):
        PromptSource(PromptConfig(source=str(path)), world.tokenizer())


@given(st.lists(st.text() | st.sampled_from(["w1 w2", "<eos> w3", "w4<bos>"]), min_size=1, max_size=5), st.booleans())
def test_many_texts_have_the_ids_that_the_tokenizer_gives_one(texts: list[str], special: bool) -> None:
    for tokenizer in (make_tokenizer(), make_tokenizer("$A")):
        alone = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
        assert encoded(texts, tokenizer, add_special_tokens=special) == alone


@pytest.mark.parametrize("split", [False, True])
def test_what_the_tokenizer_is_set_to_holds_for_every_text(split: bool) -> None:
    tokenizer, fresh = make_tokenizer("$A"), make_tokenizer("$A")
    tokenizer.pad_token = "<eos>"
    tokenizer(["w1"] * 2, padding="max_length", truncation=True, max_length=3)  # leaves both on
    tokenizer.split_special_tokens = fresh.split_special_tokens = split
    texts = ["w1 w2 w3 w4 <eos>", "<eos>w1", "w1"]
    ids = encoded(texts, tokenizer, add_special_tokens=False)
    assert ids == [fresh(text)["input_ids"] for text in texts]
    assert ids[1] == ([UNK] if split else [EOS, W0 + 1])


def test_a_tokenizer_with_a_call_of_its_own_sees_every_text() -> None:
    class Backwards(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, *arguments: Any, **options: Any) -> Any:
            return super()._encode_plus([each[::-1] for each in text], *arguments, **options)

    tokenizer = Backwards(tokenizer_object=make_tokenizer().backend_tokenizer, eos_token="<eos>")
    assert encoded(["1w", "2w", "3w"], tokenizer, add_special_tokens=False) == [[W0 + 1], [W0 + 2], [W0 + 3]]


def test_a_text_that_begins_with_a_token_has_it_doubled_only_by_a_tokenizer_that_adds_one() -> None:
    """ChatML's turns begin with `<|im_start|>`, which some tokenizers name as their first token and never add."""
    adds, words = make_tokenizer(), PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    words.backend_tokenizer.post_processor = None
    words.bos_token = adds.bos_token
    text = f"{adds.bos_token} w1"
    assert [holds_bos(each, adds) for each in (text, "w1")] == [True, False]
    assert not holds_bos(text, words)


@pytest.mark.parametrize("turn", [{"role": "user", "content": "w1"}, {"from": "human", "value": "w1"}])
def test_a_chat_that_a_cell_holds_as_json_is_a_chat(turn: dict[str, str]) -> None:
    """A CSV file has no lists; its chats were taken for texts that begin with a bracket."""
    assert chat_or_value(json.dumps([turn, turn]), "field 'p'") == [turn, turn]
    assert chat_or_value(f"\n{json.dumps([turn], indent=1)}\n", "field 'p'") == [turn]


@pytest.mark.parametrize(
    "text",
    [
        "[w1]",
        '["w1"]',
        '[{"name": "w1"}]',
        '{"role": "user", "content": "w1"}',
        '[{"role": "user", "content": "w1"}] Who speaks?',
        '[{"role": "user", "content": "w1"}, 3]',
        "[]",
    ],
)
def test_other_texts_with_brackets_stay_texts(text: str) -> None:
    assert chat_or_value(text, "field 'p'") == text


def test_a_chat_as_python_prints_it_or_with_a_key_twice_is_refused() -> None:
    for text in ("[{'role': 'user', 'content': 'w1'}]", '[{"role": "user", "role": "system", "content": "w1"}]'):
        with pytest.raises(MalformedRowError, match="field 'p' looks like a chat and cannot be read as JSON"):
            chat_or_value(text, "field 'p'")
