"""What generator actors do around the plain generator, without Ray."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest

from actors.remote import _turn_on_gpu


def test_engines_start_one_after_another_on_a_gpu_and_at_once_on_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes memory that another engine takes meanwhile for its own, or stops with an assertion if it is freed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    entered, leave = threading.Event(), threading.Event()

    def start() -> None:
        with _turn_on_gpu():
            entered.set()
            assert leave.wait(30)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6d/1")
    with _turn_on_gpu():
        second = threading.Thread(target=start)
        second.start()
        assert not entered.wait(0.3)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with _turn_on_gpu():
            pass
    assert entered.wait(30)
    leave.set()
    second.join()
    assert len(list(tmp_path.iterdir())) == 2
