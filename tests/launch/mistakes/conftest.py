"""A working directory of a user's, in which nothing heavy can start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.launch.mistakes.cases import ray_would_start, users_files

__all__ = ["ray_would_start", "users_files"]


@pytest.fixture(autouse=True)
def working_directory(
    users_files: Path, ray_would_start: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    directory = tmp_path / "work"
    shutil.copytree(users_files, directory)
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)  # as `python -m` does, for judges
    return directory
