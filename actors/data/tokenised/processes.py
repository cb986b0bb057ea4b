"""Tokenise batches in several processes, in order. Each process has its own tokenizer, and ends with its parent.

The processes are fresh interpreters, not forks: the tokenizer's threads and torch's do not survive a fork.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

from actors.data.batches import Batch
from actors.data.config import PromptConfig
from actors.data.tokenised.parsing import Part, tokenise
from actors.errors import UsageError
from actors.host import usable_cores

MOST_PROCESSES = 16
"""Most processes: more would wait for the process that reads the source."""
_given: list[tuple[PromptConfig, Any]] = []
"""Settings and tokenizer of this process, if it is one of the pool."""


def count(tokenizer: Any) -> int:
    """Return how many processes this machine's cores allow; 1 if the tokenizer cannot be sent to another process."""
    try:
        ForkingPickler.dumps(tokenizer)
    except Exception:  # whatever an object's own pickling raises
        return 1
    return min(usable_cores(), MOST_PROCESSES)


def in_this_process(batches: Iterable[Batch], config: PromptConfig, tokenizer: Any) -> Generator[Part, None, None]:
    """Tokenise batch after batch. Raises UsageError as `tokenise`."""
    return (tokenise(batch.rows(), config, tokenizer) for batch in batches)


def in_processes(
    batches: Iterable[Batch], config: PromptConfig, tokenizer: Any, processes: int
) -> Generator[Part, None, None]:
    """Tokenise batches in several processes; yield in order, and hold at most three batches per process.

    Raises UsageError as `tokenise`, for the first batch that causes one; BrokenProcessPool if a process dies.
    """
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(config, tokenizer)
    )
    waiting: deque[Future[Part]] = deque()
    refusal = None
    try:
        try:
            for batch in batches:
                waiting.append(pool.submit(_tokenise, batch))
                if len(waiting) > 3 * processes:
                    yield waiting.popleft().result()
        except UsageError as error:  # of the source, unless an earlier batch has one
            refusal = error
        while waiting:
            yield waiting.popleft().result()
        if refusal is not None:
            raise refusal
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(config: PromptConfig, tokenizer: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores
    _given.append((config, tokenizer))
    gc.freeze()  # modules stay for good; later collections then have little to scan


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _tokenise(batch: Batch) -> Part:
    (given,) = _given
    return tokenise(batch.rows(), *given)
