import pytest

from actors.redaction import redact, secret_names

HUB_KEY = "hf_" + "a1B2" * 6
SERVICE_KEY = "sk-" + "a1B2" * 6


@pytest.mark.parametrize(
    "name", ["key", "api_key", "apikey", "OPENAI_API_KEY", "hf_token", "db.password", "client-secret", "Authorization"]
)
def test_text_under_a_secret_s_name_is_masked(name):
    assert redact({name: "hunter2"}) == {name: "***"}


@pytest.mark.parametrize("name", ["max_tokens", "api_key_env", "stop_token_ids", "tokenizer", "keyboard", "secretary"])
def test_names_that_only_resemble_one_are_left_alone(name):
    assert redact({name: "hunter2"}) == {name: "hunter2"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hunter2@host:80/v1", "http://***@host:80/v1"),
        ("see ray://hunter2@host and https://host/a@b", "see ray://***@host and https://host/a@b"),
        ("Bearer hunter2", "Bearer ***"),
        (f"{HUB_KEY} and {SERVICE_KEY}", "hf_*** and sk-***"),
        ("hf_short, sk-short", "hf_short, sk-short"),
    ],
)
def test_secrets_in_a_text_are_masked_and_the_rest_is_kept(text, shown):
    assert redact(text) == shown


def test_what_is_below_sections_and_lists_is_masked_and_everything_else_is_as_it_was():
    value = {"a": [{"token": "x", "n": 1}, None, True], "key": "", "b": {"url": "http://u:p@h"}, "password": 3}
    shown = {"a": [{"token": "***", "n": 1}, None, True], "key": "", "b": {"url": "http://***@h"}, "password": 3}
    assert redact(value) == shown
    assert list(secret_names(value)) == ["a.token", "b.url"]
