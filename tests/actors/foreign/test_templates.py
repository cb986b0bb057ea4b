"""Templates that loop are refused within two seconds of work, by whoever reads them; those of models are not."""

import json
import resource
from pathlib import Path

import pytest

from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.foreign import templates
from actors.foreign.templates import check_chat_template
from actors.judges.config import EndpointJudgeConfig
from actors.judges.http.questions import Question
from tests.fakes.tokenizers import chat_tokenizer

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LOOPS = {
    "loops in each other": NESTED + "{{ messages }}",
    "a long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "a long text": "{{ 'x' * 10 ** 12 }}",
    "a wide format": "{% for i in range(9) %}{{ '%0999999999d' % 1 }}{% endfor %}",
    "a large power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a text doubled often": "{% set n = namespace(t='x') %}"
    "{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "only with a system message": "{% if messages[0].role == 'system' %}" + NESTED + "{% endif %}",
    "within generation": "{% generation %}" + NESTED + "{% endgeneration %}",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_chat_template_that_does_not_end_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    with pytest.raises(UsageError, match=r"^the template of X does not end: .*; look for loops in it, or use another"):
        check_chat_template(LOOPS[name], "the template of X")


def test_it_is_refused_after_less_than_two_seconds_of_work() -> None:
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(UsageError, match=r"took more than 1 s or 2 GiB of memory"):
        check_chat_template(NESTED, "the template of Y")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 2.0


@pytest.mark.parametrize(
    "template",
    [None, "", GOOD, {"default": GOOD, "rag": "{{ documents[0] }}"}, "{% broken", "{{ raise_exception('no') }}"],
)
def test_a_template_that_ends_or_fails_is_left_to_its_reader(template: object) -> None:
    check_chat_template(template, "the template of X")


def test_what_only_transformers_knows_is_no_mistake() -> None:
    check_chat_template("{% generation %}a{% endgeneration %}{{ strftime_now('%d') }}" + GOOD, "the template of X")


def test_a_tokenizer_s_template_is_tried_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = NESTED
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=rf"the chat template of '{tmp_path}' does not end"):
        load_tokenizer(str(tmp_path), needs_eos=False)


def test_a_judge_s_own_template_is_tried_when_its_question_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    config = EndpointJudgeConfig(url="http://h", model="m", template=NESTED + "{{ first }}{{ second }}")
    with pytest.raises(UsageError, match=r"judging\.judge\.template does not end"):
        Question(config)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"a": ', "1" * 5000])
def test_a_tokenizer_s_file_that_means_nothing_is_a_sentence(name: str, text: str, tmp_path: Path) -> None:
    chat_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read: .*; restore it|no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path), needs_eos=False)


def test_a_huge_tokenizer_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read: it has 314,572,800 bytes, of at most"):
        load_tokenizer(str(tmp_path))
