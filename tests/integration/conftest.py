"""What whole runs start from, and that they leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.world import tokenizer
from learner.world.policy import TINY, build_policy
from tests.integration.runs import abandoned
from tests.processes import MARK, Marked


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded world's policy, tiny and untrained."""
    import torch

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("policy")
    build_policy(TINY).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def own(marked: Marked, monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """The processes of the test's runs. None of them, and no shared memory of theirs, may outlive the runs."""
    monkeypatch.setenv(MARK, marked.environ[MARK])
    before = abandoned()
    yield marked
    deadline = time.monotonic() + 20
    while (left := [*marked.running(), *(abandoned() - before)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
