"""What whole runs start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.world import tokenizer
from learner.sft import TINY, build_policy


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded world's policy, tiny and untrained."""
    import torch

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("policy")
    build_policy(TINY).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
