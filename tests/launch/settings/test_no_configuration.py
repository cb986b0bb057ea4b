"""Files that are given in place of a configuration: one sentence says what each is, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main

SFT = "model: {path: scratch}\ndata: {source: x.jsonl}\ntraining: {epochs: 1}\n"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The mistakes in a configuration, without heading and footer."""
    assert main(list(arguments)) == 2
    return "\n".join(line.strip() for line in capsys.readouterr().err.splitlines()[1:-1])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_toml_is_no_yaml(capsys):
    Path("run.toml").write_text('[model]\npath = "world"\n')
    assert said(capsys, "config", "run.toml").startswith("ends in .toml; allowed is YAML: `section:` with `key: value`")


def test_json_is_yaml(capsys):
    Path("run.json").write_text('{"model": {"path": "world"}, "updates": 3}')
    assert main(["config", "run.json"]) == 0
    assert "\nupdates: 3\n" in capsys.readouterr().out


def test_a_directory_names_the_configuration_in_it(capsys):
    Path("runs/a").mkdir(parents=True)
    assert said(capsys, "config", "runs/a") == "is a directory; give a YAML file, or the name of a preset"
    Path("runs/a/other.yaml").touch()
    assert said(capsys, "config", "runs/a") == "is a directory; give runs/a/other.yaml"
    Path("runs/a/config.yaml").touch()
    assert said(capsys, "config", "runs/a") == "is a directory; give runs/a/config.yaml"


@pytest.mark.parametrize("verb", ["config", "doctor"])
def test_a_file_of_another_verb_is_named_with_the_command_for_it(verb, capsys):
    Path("sft.yaml").write_text(SFT + "learner: {packing: true}\n")
    assert said(capsys, verb, "sft.yaml") == (
        "its sections are those of `offbeat sft`, not of `offbeat train`; run `offbeat sft sft.yaml`, or check it by "
        "`offbeat config sft.yaml --verb sft`"
    )
    assert main(["config", "sft.yaml", "--verb", "sft"]) == 0


def test_a_file_of_a_sweep_is_named_without_a_check_that_there_is_none_of(capsys):
    Path("sweep.yaml").write_text("base: embedded\naxes: {lr: {learner.optimizer.lr: [1.0e-5, 1.0e-6]}}\n")
    assert said(capsys, "config", "sweep.yaml") == (
        "its sections are those of `offbeat sweep`, not of `offbeat train`; run `offbeat sweep sweep.yaml`"
    )


def test_a_section_of_no_verb_is_told_as_a_mistake_of_the_verb(capsys):
    Path("run.yaml").write_text("model: {path: world}\nxyzzy: {a: 1}\n")
    assert said(capsys, "config", "run.yaml") == "xyzzy: no such setting"
