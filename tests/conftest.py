"""What every test needs, wherever it is run."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import garbage
from tests.processes import Marked

# `--hypothesis-profile=thorough`, as `make long` has it, gives the longest property tests all their examples.
settings.register_profile("thorough")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A disk takes four milliseconds for each, thousands of times. What they are for, a loss of power, no test makes.
os.fsync = lambda descriptor: None

# To look for garbage among modules and tests takes a sixth of the time of their import.
gc.disable()
garbage.keep_exempt()


def pytest_collection_finish() -> None:
    garbage.spare()
    gc.enable()


def pytest_unconfigure() -> None:
    garbage.look_at_all()  # or Triton, which then finds its objects alive at the end, prints a page about leaks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On several processes, which take file after file, put the files with most engine tests first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        engines = Counter(item.path for item in items if any(map(item.get_closest_marker, ("slow", "ray", "vllm"))))
        items.sort(key=lambda item: (-engines[item.path], item.path))


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left() -> Iterator[None]:
    """A test that fails keeps its engine alive, and with it the process group that the next file's tests would join.

    The last test of a file holds its fixtures until the next file begins. An engine among them ends when Python
    collects it, and takes the groups of whatever engine is at work then.
    """
    _end_groups()
    garbage.spare_imports()
    yield
    _end_groups()


def _end_groups() -> None:
    vllm, deepspeed = (sys.modules.get(name) for name in ("vllm.distributed.parallel_state", "deepspeed.utils.groups"))
    if vllm is not None:
        garbage.collect()
        if vllm._WORLD is not None:
            vllm.cleanup_dist_env_and_memory()
    torch = sys.modules.get("torch.distributed")
    if torch is not None and torch.is_initialized():
        torch.destroy_process_group()
    if deepspeed is not None:
        deepspeed._release_process_group_references()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short name: Ray keeps sockets in it, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def marked(short_dir: Path) -> Iterator[Marked]:
    """Ended before the directory that its processes write to is removed."""
    processes = Marked()
    yield processes
    processes.end()
