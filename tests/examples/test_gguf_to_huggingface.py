"""The converter of `make pretrained`: whole or not at all. What it writes is tested by tests/integration."""

import subprocess
import sys

import pytest

from examples import gguf_to_huggingface
from tests.house import ROOT


def test_a_model_that_cannot_be_read_leaves_nothing_behind(tmp_path, monkeypatch):
    def half(source, directory):
        (directory / "config.json").write_text("{}")
        raise OSError("damaged")

    monkeypatch.setattr(gguf_to_huggingface, "_write", half)
    with pytest.raises(OSError, match="damaged"):
        gguf_to_huggingface.convert(tmp_path / "model.gguf", tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


def test_what_a_killed_process_left_is_replaced(tmp_path, monkeypatch):
    (tmp_path / ".small.part").mkdir()
    (tmp_path / ".small.part" / "half.safetensors").touch()
    monkeypatch.setattr(gguf_to_huggingface, "_write", lambda source, directory: (directory / "config.json").touch())
    gguf_to_huggingface.convert(tmp_path / "model.gguf", tmp_path / "small")
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.slow
def test_a_directory_that_exists_is_left_alone_and_named(tmp_path):
    command = [sys.executable, "examples/gguf_to_huggingface.py", str(tmp_path / "model.gguf"), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith(f"{tmp_path} exists; remove it, or name another directory")
