"""What a user can get wrong: each ends in one clear sentence and the right exit code, before anything was started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.output import run_directory as rundir
from launch.settings.loading import load_config


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Apart from that of other runs on the machine."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr("launch.output.run_directory.SHARED_MEMORY", path)
    return path


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    """A configuration with nothing wrong in it."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "red north"}) + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"path": str(model_dir)},
                "output": str(tmp_path / "run"),
                "prompts": {"source": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 8},
                "sampling": {"max_new_tokens": 4},
                "generators": {"max_model_len": 32, "dtype": "float32"},
                "publication": {"canary_tokens": 8},
                "cluster": {"address": "local"},
            }
        )
    )
    load_config(path)
    return path


def _error(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """The error message of `offbeat train ARGUMENTS`, which must be the only thing that went wrong."""
    assert main(["train", *arguments]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("offbeat: error:") == 1
    assert not list(rundir.SHARED_MEMORY.iterdir())
    return error


def test_an_unknown_key(config: Path, capsys) -> None:
    error = _error(capsys, str(config), "replay.max_stalenes=2", code=2)
    assert "replay.max_stalenes" in error
    assert "replay.max_staleness" in error


def test_a_wrong_type(config: Path, capsys) -> None:
    assert "updates" in _error(capsys, str(config), "updates=many", code=2)


def test_several_mistakes_are_told_at_once(config: Path, capsys) -> None:
    error = _error(capsys, str(config), "updates=many", "replay.max_staleness=-1", "learner.zero_stage=7", code=2)
    assert all(key in error for key in ("updates", "replay.max_staleness", "learner.zero_stage"))


def test_a_missing_configuration(tmp_path: Path, capsys) -> None:
    assert "absent.yaml" in _error(capsys, str(tmp_path / "absent.yaml"), code=2)


def test_missing_prompts(config: Path, capsys) -> None:
    assert "nowhere.jsonl" in _error(capsys, str(config), "prompts.source=nowhere.jsonl", code=2)


def test_a_prompt_longer_than_its_limit_names_file_and_line(config: Path, capsys) -> None:
    (config.parent / "prompts.jsonl").write_text('{"prompt": "red"}\n{"prompt": "' + "red " * 20 + '"}\n')
    error = _error(capsys, str(config), code=2)
    assert "prompts.jsonl:2" in error
    assert "max_prompt_tokens" in error


def test_sequences_longer_than_the_context(config: Path, capsys) -> None:
    error = _error(capsys, str(config), "sampling.max_new_tokens=60", code=2)
    assert "generators.max_model_len 32" in error


def test_an_engine_longer_than_the_model(config: Path, capsys) -> None:
    assert "exceeds the 64 positions" in _error(capsys, str(config), "generators.max_model_len=65", code=2)


def test_an_empty_data_set(config: Path, capsys) -> None:
    (config.parent / "prompts.jsonl").write_text("")
    assert "prompts.jsonl" in _error(capsys, str(config), code=2)


def test_a_missing_model(config: Path, capsys) -> None:
    assert "model.path" in _error(
        capsys,
        str(config),
        f"model.path={config.parent / 'no-model'}",
        f"model.tokenizer={yaml.safe_load(config.read_text())['model']['path']}",
        code=2,
    )


def test_an_unreadable_checkpoint(config: Path, capsys) -> None:
    run = config.parent / "run"
    (run / "checkpoints" / "update-0000004").mkdir(parents=True)
    (run / "config.yaml").write_text(config.read_text())
    (run / "checkpoints" / "latest").write_text("update-0000004")
    error = _error(capsys, str(config), "--resume", code=2)
    assert "update-0000004" in error
    assert "missing" in error


def test_nothing_to_resume(config: Path, capsys) -> None:
    assert "found no run" in _error(capsys, str(config), "--resume", code=2)


def test_an_output_that_holds_another_run(config: Path, capsys) -> None:
    (config.parent / "run").mkdir()
    (config.parent / "run" / "something").write_text("")
    assert "is not empty" in _error(capsys, str(config), code=2)


def test_shared_memory_too_small(config: Path, capsys) -> None:
    error = _error(capsys, str(config), f"cluster.object_store_mib={1 << 40}", code=2)
    assert "/dev/shm: " in error
    assert "object store 1,073,741,824.0 GiB" in error
    assert "--shm-size" in error


def test_a_cluster_that_does_not_answer(config: Path, capsys) -> None:
    error = _error(capsys, str(config), "cluster.address=127.0.0.1:1", code=1)
    assert "127.0.0.1:1" in error
    assert "cluster.address=local" in error
