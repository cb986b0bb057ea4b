"""What whole runs start from, and that they leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.world import tokenizer
from learner.world.policy import TINY, build_policy
from tests.integration.runs import leaving_nothing
from tests.processes import Marked


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
def own(marked: Marked) -> Iterator[Marked]:
    """The processes of the test's runs. None of them, and no shared memory of theirs, may outlive the runs."""
    with leaving_nothing(marked):
        yield marked


@pytest.fixture(scope="module")
def ours() -> Iterator[Marked]:
    """As `own`, for all runs of a file."""
    processes = Marked()
    try:
        with leaving_nothing(processes):
            yield processes
    finally:
        processes.end()
