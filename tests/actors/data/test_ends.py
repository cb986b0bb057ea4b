"""Which token ids end an answer, and where a response that is trained on ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.data.text import encoded, response_token_ids
from actors.errors import UsageError
from actors.generation.requests import text_after
from actors.hub import answer_ends
from tests.actors.data.test_prompts import EOS, W0, make_tokenizer
from tests.fakes.tokenizers import metaspace_tokenizer


class Ending:
    """A tokenizer, as far as its end-of-sequence goes."""

    def __init__(self, eos: int | None) -> None:
        self.eos_token_id = eos


def write(directory: Path, name: str, **config: Any) -> None:
    (directory / f"{name}.json").write_text(json.dumps(config))


def test_tokenizer_generation_config_and_config_are_united(tmp_path: Path) -> None:
    """A tokenizer ended with 2, generation_config.json named 3: every answer that ended with 2 counted as cut off."""
    assert answer_ends(tmp_path, Ending(2)) == (2,)
    write(tmp_path, "generation_config", eos_token_id=3)
    assert answer_ends(tmp_path, Ending(2)) == (2, 3)
    write(tmp_path, "generation_config", eos_token_id=[9, 3, 9])
    write(tmp_path, "config", eos_token_id=5, text_config={"eos_token_id": [6, 2]})
    assert answer_ends(tmp_path, Ending(2)) == (2, 3, 5, 6, 9)
    assert answer_ends(tmp_path, Ending(None)) == (2, 3, 5, 6, 9)


def test_a_model_that_nothing_ends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "config", eos_token_id=None)
    write(tmp_path, "generation_config", eos_token_id=[])
    with pytest.raises(UsageError, match=r"nothing ends an answer of .*; set eos_token in tokenizer_config\.json"):
        answer_ends(tmp_path, Ending(None))


@pytest.mark.parametrize("content", ["{", "[1]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, true]}'])
def test_an_unreadable_configuration_is_refused_by_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"generation_config\.json cannot be read"):
        answer_ends(tmp_path, Ending(2))


def test_a_response_ends_at_the_first_token_that_ends_an_answer() -> None:
    """A template that writes an end of turn, and a tokenizer with another end-of-sequence: training saw two ends in a
    row, sampling and judging saw one."""
    tokenizer, turn = make_tokenizer(), W0 + 3
    texts = encoded(["w1 w2", "w1 w3", "w1 w3 w2", "w3"], tokenizer, add_special_tokens=False)
    assert response_token_ids(texts, tokenizer) == [
        [W0 + 1, W0 + 2, EOS],
        [W0 + 1, turn, EOS],
        [W0 + 1, turn, W0 + 2, EOS],
        [turn, EOS],
    ]
    assert response_token_ids(texts, tokenizer, (turn,)) == [
        [W0 + 1, W0 + 2, EOS],
        [W0 + 1, turn],
        [W0 + 1, turn],
        [turn],
    ]


def test_text_after_a_prompt_keeps_its_first_space_and_leaves_out_ids_beyond_the_tokenizer() -> None:
    tokenizer = metaspace_tokenizer(["red", "green", "blue"])
    red, green, blue = tokenizer.convert_tokens_to_ids(["▁red", "▁green", "▁blue"])
    eos, beyond = tokenizer.eos_token_id, len(tokenizer) + 3
    assert text_after([red], [green, blue, eos], tokenizer) == " green blue"
    assert text_after([red], [green, beyond, blue], tokenizer) == " green blue"
    assert text_after([red], [beyond], tokenizer) == ""
    assert text_after([red], [], tokenizer) == ""
