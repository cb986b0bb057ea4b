"""What is masked, what stays readable, and what is left of a key that a server repeats: two tables and a few rules."""

import pytest

from actors.redaction import redact, secret_names, without_key
from tests.timing import assert_quick

WORD = "a1B2c3D4e5F6g7H8"
HUB_KEY = "hf_" + "a1B2" * 6
SERVICE_KEY = "sk-" + "a1B2" * 6


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "api_key",
        "apikey",
        "OPENAI_API_KEY",
        "hf_token",
        "db.password",
        "client-secret",
        "Authorization",
        "auth",
        "clientSecret",
        "pwd",
        "api_key_2",
        "APIKey",
        "passwd",
        "credential",
        "passphrase",
        "accessKeyV2",
        "pat",
    ],
)
def test_text_under_a_secret_s_name_is_masked(name):
    assert redact({name: "hunter2"}) == {name: "***"}


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "api_key_env",
        "stop_token_ids",
        "tokenizer",
        "keyboard",
        "secretary",
        "pad_token",
        "eos_token",
        "image_token",
        "token_ids",
        "tokens",
        "key_frames",
        "author",
        "auth_mode",
        "sort_key",
        "monkey",
        "path",
    ],
)
def test_names_that_only_resemble_one_are_left_alone(name):
    assert redact({name: "hunter2"}) == {name: "hunter2"}


@pytest.mark.parametrize("name", ["tokens", "secretString", "key_prod", "my_token_value", "auth_header"])
def test_beside_a_secret_s_word_a_random_value_is_masked_and_an_ordinary_one_is_not(name):
    assert redact({name: WORD}) == {name: "***"}
    assert redact({name: "one of several"}) == {name: "one of several"}
    assert redact({name: "OPENAI_API_KEY"}) == {name: "OPENAI_API_KEY"}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://ann:hunter2@host:80/v1", "http://***@host:80/v1"),
        ("see ray://hunter2@host and https://host/a@b", "see ray://***@host and https://host/a@b"),
        ("http://ann:hun/ter2@host/v1", "http://***@host/v1"),
        ("http://ann:hun@ter2@host/v1", "http://***@host/v1"),
        ("http://h/v1?api_key=hunter2&n=3", "http://h/v1?api_key=***&n=3"),
        ("Bearer hunter2", "Bearer ***"),
        ("Authorization: hunter2", "Authorization: ***"),
        ("{'Authorization': 'Basic aHVudGVyMg=='}", "{'Authorization': '***'}"),
        ("proxy-authorization=Token hunter2, x", "proxy-authorization=***, x"),
        (f"{HUB_KEY} and {SERVICE_KEY}", "hf_*** and sk-***"),
        (f"sk-proj-{WORD}_{WORD}", "sk-***"),
        (f"sk_live_{WORD}", "sk_live_***"),
        (f"gsk_{WORD}", "gsk_***"),
        (f"ghp_{WORD} gho_{WORD}", "ghp_*** gho_***"),
        (f"github_pat_{WORD}_{WORD}", "github_pat_***"),
        (f"glpat-{WORD}", "glpat-***"),
        (f"xoxb-1234567890-{WORD}", "xoxb-***"),
        (f"AIza{WORD}{WORD}", "AIza***"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIA***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.SflKxwRJSM", "***"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nrest", "***\nrest"),
        ("-----BEGIN PRIVATE KEY-----\ncut off", "***"),
        ("password=hunter2", "password=***"),
        ("password: hunter2", "password: ***"),
        ('{"clientSecret": "hunter"}', '{"clientSecret": "***"}'),
        ("--token hunter2 --n 3", "--token *** --n 3"),
        ("env: pwd=hunter2", "env: pwd=***"),
        (f"token: {WORD}", "token: ***"),
    ],
)
def test_secrets_in_a_text_are_masked_and_the_rest_is_kept(text, safe):
    assert redact(text) == safe
    assert redact(safe) == safe


@pytest.mark.parametrize(
    "text",
    [
        "hf_short, sk-short",
        "max_tokens=256, stop_token_ids: [1, 2]",
        "tokenizer: Qwen/Qwen2.5-0.5B-Instruct",
        'pad_token: <pad>, eos_token="</s>"',
        "token: missing",
        "unknown key: 5",
        "a section of `key: value` lines",
        "api_key_env: OPENAI_API_KEY",
        "write KEY=VALUE",
        "password: missing; set one",
        "KeyError: 'abc'",
        "stopped at token 17",
        "1,200 tokens/s",
        "scikit-learn, risk-averse-a1B2c3D4e5F6g7",
        "http://127.0.0.1:8000/v1@main",
        "task-a1b2c3d4e5f6a7b8c9d0",
        "learner.loss.kind: given 5; allowed: dpo",
        "sha256 " + "0af3" * 16,
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


def test_what_is_below_sections_and_lists_is_masked_and_everything_else_is_as_it_was():
    value = {"a": [{"token": "x", "n": 1}, None, True], "key": "", "b": {"url": "http://u:p@h"}, "password": 3}
    safe = {"a": [{"token": "***", "n": 1}, None, True], "key": "", "b": {"url": "http://***@h"}, "password": 3}
    assert redact(value) == safe
    assert list(secret_names(value)) == ["a.token", "b.url"]
    assert list(secret_names({"stop": ["x", HUB_KEY], "headers": {"Authorization": "x"}})) == [
        "stop",
        "headers.Authorization",
    ]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Incorrect API key provided: secret-hu****7890.", "Incorrect API key provided: [key]****7890."),
        ("key secret-hunter-1234567890, key secret-hunter-1234567890", "key [key], key [key]"),
        ("begins with secret and ends with 567890", "begins with [key] and ends with [key]"),
        ("secre 67890 hunte", "secre 67890 hunte"),
    ],
)
def test_a_known_key_is_masked_with_every_part_of_six_characters(text, safe):
    assert without_key(text, "secret-hunter-1234567890", "[key]") == safe


def test_a_short_key_is_masked_whole_and_no_key_masks_nothing():
    assert without_key("a k1 b k", "k1") == "a *** b k"
    assert without_key("a", "") == "a"


@pytest.mark.parametrize("text", ["token=" * 30_000, "://" * 60_000, "eyJ-" * 50_000, "a:b@" * 50_000, "--a " * 50_000])
def test_no_text_takes_long_to_look_through(text):
    assert_quick(lambda: redact(text[:16_000]), 1.0)  # as much of a message as `shown` looks through
