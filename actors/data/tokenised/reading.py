"""Read the prompts of a source: a few in this process, many from the cache or in several processes.

Must not know the order of prompts, or whether malformed rows are allowed.
"""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

from actors.data.batches import Batch
from actors.data.config import PromptConfig
from actors.data.rows import OpenedSource, open_prompts
from actors.data.tokenised import processes
from actors.data.tokenised.cache import FOLDER_VARIABLE, NotKeptError, from_environment
from actors.data.tokenised.identity import identity, stamps
from actors.data.tokenised.parsing import Part
from actors.data.tokenised.table import PromptTable, in_memory

LITTLE_WORK, MUCH_WORK = 16.0, 64.0
"""Work in full batches: below the first a cache does not pay; from the second on, starting processes does."""


def read_prompts(config: PromptConfig, tokenizer: Any) -> tuple[PromptTable, list[str]]:
    """Return the prompts of a source, and notes for the user on the reading.

    Raises UsageError if the source cannot be read, or the tokenizer cannot tokenise it.
    """
    source = open_prompts(config)
    first, work = _first(source.batches)
    if work < LITTLE_WORK:
        return in_memory(processes.in_this_process(first, config, tokenizer)), []
    source = OpenedSource(chain(first, source.batches), source.files, source.reading)
    count = processes.count(tokenizer) if work >= MUCH_WORK else 1
    try:
        return _read_many(source, config, tokenizer, count)
    except (BrokenProcessPool, OSError) as error:  # a process was killed, or cannot be started
        note = f"warning: several processes could not tokenise the prompts ({error}); one does"
        table, notes = _read_many(open_prompts(config), config, tokenizer, 1)
        return table, [note, *notes]


def _first(batches: Iterator[Batch]) -> tuple[list[Batch], float]:
    """Return the first batches that add up to `MUCH_WORK`, or all if they have less, and their work."""
    first: list[Batch] = []
    work = 0.0
    while work < MUCH_WORK and (batch := next(batches, None)) is not None:
        first.append(batch)
        work += batch.work
    return first, work


def _read_many(source: OpenedSource, config: PromptConfig, tokenizer: Any, count: int) -> tuple[PromptTable, list[str]]:
    """Return prompts and notes. Takes the prompts from the cache, or tokenises and stores them there."""
    parts = partial(_parts, config=config, tokenizer=tokenizer, count=count)
    notes: list[str] = []
    cache = known = None
    try:
        cache, before = from_environment(), stamps(source.files)
        known = None if cache is None else identity(source, config, tokenizer)
    except (OSError, NotKeptError) as error:
        notes.append(_not_kept(error))
    if cache is None or known is None:
        return in_memory(parts(source.batches)), notes
    table = cache.load(known)
    if table is not None:
        return table, []
    try:
        with closing(parts(source.batches)) as made:
            table, reason = cache.store(known, made, lambda: stamps(source.files) == before)
    except NotKeptError as error:
        return in_memory(parts(open_prompts(config).batches)), [_not_kept(error)]
    return table, [] if reason is None else [_not_kept(reason)]


def _parts(batches: Iterable[Batch], config: PromptConfig, tokenizer: Any, count: int) -> Generator[Part, None, None]:
    if count == 1:
        return processes.in_this_process(batches, config, tokenizer)
    return processes.in_processes(batches, config, tokenizer, count)


def _not_kept(reason: object) -> str:
    return (
        f"the tokenised prompts are not kept for the next start: {reason}; set {FOLDER_VARIABLE} to a folder with "
        "space, or to `off`"
    )
