"""What tests with engines in this process share."""

import os
from collections.abc import Iterator

import pytest

from tests import garbage


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """DeepSpeed on the CPU, whatever this machine has; the process's variables are left as they were."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import learner.training.engine  # noqa: F401

    garbage.spare_imports()
    yield
    os.environ.clear()
    os.environ.update(before)
