"""Whatever changes a prompt changes what its source is known by; what does not, does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from actors.data.config import PromptConfig
from actors.data.rows import open_prompts
from actors.data.tokenised import identity as module
from actors.data.tokenised.identity import identity
from tests.actors.data.test_prompts import TEMPLATE, make_tokenizer


def known(source: Path, tokenizer: Any = None, **settings: Any) -> str | None:
    config = PromptConfig(source=str(source), **settings)
    return identity(open_prompts(config), config, tokenizer or make_tokenizer(chat_template=TEMPLATE))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "w1", "other": "w2"}\n')
    return path


def test_files_settings_tokenizer_and_code_make_an_identity(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        known(file),
        known(file, prompt_field="other"),
        known(file, answer_field="other"),
        known(file, columns=("other",)),
        known(file, template="w3 {prompt}"),
        known(file, max_prompt_tokens=7),
        known(file, make_tokenizer("$A", TEMPLATE)),
        known(file, make_tokenizer(chat_template=TEMPLATE + " ")),
    ]
    moved = file.rename(file.with_name("q.jsonl"))
    found.append(known(moved))
    moved.rename(file).write_text('{"prompt": "w1", "other": "w3"}\n')
    found.append(known(file))
    monkeypatch.setattr(module, "_code", lambda: "another version")
    found.append(known(file))
    assert None not in found
    assert len(set(found)) == len(found)


def test_order_and_what_is_done_with_malformed_rows_do_not(file: Path) -> None:
    same = {known(file), known(file, seed=5), known(file, shuffle=False), known(file, on_malformed="skip")}
    assert len(same) == 1


def test_a_file_of_a_directory_counts(tmp_path: Path, file: Path) -> None:
    before = known(tmp_path)
    file.with_name("q.jsonl").write_text(file.read_text())
    assert known(tmp_path) != before


def test_a_saved_data_set_is_known_by_its_files(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        datasets.Dataset.from_dict({"prompt": [f"w{name == 'b':d}"] * 3}).save_to_disk(str(tmp_path / "data"))
        found += [known(tmp_path / "data"), known(tmp_path / "data")]
    assert None not in found
    assert [found[0] == found[1], found[2] == found[3], found[1] == found[2]] == [True, True, False]


@pytest.mark.parametrize("template", ["{{ strftime_now('%d') }}", "{{ messages | random }}"])
def test_prompts_that_change_by_themselves_have_none(file: Path, template: str) -> None:
    assert known(file, make_tokenizer(chat_template=template + TEMPLATE)) is None


def test_prompts_that_lie_in_no_file_have_none() -> None:
    config = PromptConfig(source="world")
    assert identity(open_prompts(config), config, make_tokenizer()) is None
