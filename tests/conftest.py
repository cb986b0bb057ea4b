"""What every test needs, wherever it is run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.processes import Marked

# `--hypothesis-profile=thorough`, as `make test` has it, gives the longest property test all its runs.
settings.register_profile("thorough")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On several processes, keep the tests of a file together, for their fixtures; files with most engine tests first.

    Files of one `xdist_group` never run at the same time.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    engines: Counter[str] = Counter()
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(item.config.rootpath).as_posix()))
        engines[_group(item)] += any(item.get_closest_marker(name) for name in ("slow", "ray", "vllm"))
    items.sort(key=lambda item: (-engines[_group(item)], _group(item)))


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return marker.args[0]


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
