"""YAML of settings within limits: bombs of aliases, deep brackets and odd numbers end in a sentence, and at once."""

from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.settings.yaml_text import LARGEST, YamlError, parse_yaml, read_yaml
from tests.timing import assert_quick

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MAPS = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}, d: *a{n - 1}}}\n" for n in range(1, 30))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
BAD = {
    "lists of aliases": (BOMB, "more than 10,000 values"),
    "sections of aliases": (MAPS, "more than 10,000 values"),
    "merged aliases": (MERGES, "more than 10,000 values"),
    "a list within itself": ("a: &a [*a]", "an alias that means what it stands in"),
    "a section within itself": ("a: &a {b: {c: *a}}", "an alias that means what it stands in"),
    "brackets": ("[" * 200_000, "more than 32 levels"),
    "braces": ("a: " + "{" * 200_000, "more than 32 levels"),
    "dashes": ("- " * 200_000, "more than 32 levels"),
    "many values": ("[" + "1," * 15_000 + "]", "more than 10,000 values"),
    "a number of too many digits": ("a: " + "1" * 5000, "limit"),
    "a date that is none": ("a: 2026-13-45", "month"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_exceeds_a_limit_is_refused_at_once_in_a_file_and_in_an_override(name: str, tmp_path: Path) -> None:
    text, why = BAD[name]
    path = tmp_path / "run.yaml"
    path.write_text(text)

    def refused() -> None:
        with pytest.raises(UsageError, match=rf"(?s)run\.yaml: 1 mistake.*not valid YAML: .*{why}"):
            load_config(path)
        key = "learner.deepspeed"
        name = f"{key}={text}" if "\n" not in text else f"{key}={{{_in_one_line(text)}}}"
        with pytest.raises(UsageError, match=rf"(?s){key}: given .*not valid YAML \(.*{why}.*\); quote it"):
            load_config(None, ["model.path=m", name])

    assert_quick(refused, 5.0)


def _in_one_line(text: str) -> str:
    return ", ".join(text.splitlines())


def test_aliases_and_merges_in_their_place_are_read() -> None:
    text = "a: &a {b: 1, c: [2]}\nd: *a\ne: {<<: *a, b: 3}\n"
    assert parse_yaml(text) == {"a": {"b": 1, "c": [2]}, "d": {"b": 1, "c": [2]}, "e": {"b": 3, "c": [2]}}


def test_the_largest_configuration_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("#" * LARGEST)
    assert read_yaml(path) is None
    path.write_text("#" * (LARGEST + 1))
    with pytest.raises(YamlError, match=r"it has more than 1,048,576 bytes"):
        read_yaml(path)
    with pytest.raises(UsageError, match=r"1,048,576 bytes"):
        load_config("/dev/zero")
