"""JSON of a model's directory: bounded, and a sentence that names the file wherever it is read."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import UsageError
from actors.foreign.documents import read_json, read_object
from actors.generation.weights import is_tied
from actors.hub import answer_ends, read_config, read_text_config

DEEP = "[" * 200_000
NESTED = '{"a": ' * 200_000 + "1" + "}" * 200_000


def _ends(directory: Path) -> Any:
    return answer_ends(directory, SimpleNamespace(eos_token_id=1))


@pytest.mark.parametrize("text", [DEEP, NESTED, "[]", "1", "null", '{"a": ', "\xff", "9" * 5000])
@pytest.mark.parametrize("read", [read_config, lambda path: read_text_config("model.path", path), is_tied, _ends])
def test_a_configuration_that_is_no_object_is_a_sentence_with_the_file(
    text: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(UsageError, match=r"config\.json cannot be read: .*; restore it from its source"):
        read(tmp_path)


def test_a_file_that_is_longer_than_its_limit_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('"' + "x" * 98 + '"')
    assert read_json(tmp_path / "a.json", largest=100) == "x" * 98
    with pytest.raises(UsageError, match=r"a\.json cannot be read: it has more than 99 bytes; .*"):
        read_json(tmp_path / "a.json", largest=99)


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.json cannot be read: No such file or directory; ask Ann"):
        read_object(tmp_path / "a.json", remedy="ask Ann")
