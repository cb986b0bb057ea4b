"""Processes that tokenise keep the order, pass on refusals, and end with the one that began them.

Rows with a problem need no tokenizer, so that the processes start in a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from actors.data.batches import Batch, ReadRows, Row
from actors.data.config import PromptConfig
from actors.data.tokenised import processes
from actors.data.tokenised.processes import in_processes
from actors.errors import UsageError
from tests.house import ROOT

CONFIG = PromptConfig()
SCRIPT = """
import sys
from actors.data.config import PromptConfig
from tests.actors.data.tokenised.test_processes import batch
from actors.data.tokenised.processes import in_processes
if __name__ == "__main__":
    parts = in_processes((batch(number) for number in range(10**9)), PromptConfig(), None, 2)
    for number, part in enumerate(parts):
        if number == 0:
            print("begun", flush=True)
"""


def batch(number: int) -> Batch:
    return ReadRows([Row(f"r:{number}", f"place {number}", problem=f"problem {number}")])


def test_parts_come_in_the_order_of_their_batches() -> None:
    parts = list(in_processes(map(batch, range(40)), CONFIG, None, 2))
    assert [str(each.problems[0]) for each in parts] == [f"place {number}: problem {number}" for number in range(40)]


def test_no_more_batches_are_read_than_are_worked_on() -> None:
    read = 0

    def counted() -> Iterator[Batch]:
        nonlocal read
        for number in range(100):
            read += 1
            yield batch(number)

    parts = in_processes(counted(), CONFIG, None, 2)
    next(parts)
    assert read == 7
    parts.close()


def test_the_first_refusal_counts_be_it_of_a_batch_or_of_the_source() -> None:
    chat = ReadRows([Row("r:0", "place", {"prompt": [{"role": "user", "content": "a"}]})])

    def ending(*given: Batch) -> Iterator[Batch]:
        yield from given
        raise UsageError("the source ends")

    with pytest.raises(UsageError, match="the source ends"):
        list(in_processes(ending(batch(0), batch(1)), CONFIG, None, 1))
    with pytest.raises(UsageError, match="no chat template"):
        list(in_processes(ending(batch(0), chat, batch(1)), CONFIG, _Templateless(), 1))


def test_processes_end_with_the_one_that_began_them_even_if_it_is_killed() -> None:
    """Of a pool whose parent is gone, processes would wait for work for ever."""
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_tokenizer_that_cannot_be_sent_is_used_in_one_process() -> None:
    assert processes.count(lambda: None) == 1
    assert processes.count(None) == min(len(os.sched_getaffinity(0)), 16)


class _Templateless:
    chat_template = None
