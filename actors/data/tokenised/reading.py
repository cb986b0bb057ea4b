"""How the prompts of a source are had: a few in this process, many from the cache or by several processes.

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

FEW_ROWS = 16_384
"""Rows that are tokenised in less time than a cache is worth."""
MANY_ROWS = 65_536
"""Rows that are tokenised in more time than several processes need to start."""


def read_prompts(config: PromptConfig, tokenizer: Any) -> tuple[PromptTable, list[str]]:
    """Return the prompts of a source, and what should be told of how they were read.

    Raises UsageError if the source cannot be read, or the tokenizer cannot read it.
    """
    source = open_prompts(config)
    first = _first(source.batches, MANY_ROWS)
    rows = sum(map(len, first))
    if rows < FEW_ROWS:
        return in_memory(processes.in_this_process(first, config, tokenizer)), []
    source = OpenedSource(chain(first, source.batches), source.files, source.reading)
    count = processes.count(tokenizer) if rows >= MANY_ROWS else 1
    try:
        return _read_many(source, config, tokenizer, count)
    except BrokenProcessPool as error:
        note = f"warning: a process that tokenised prompts died ({error}); they were tokenised in one process"
        table, notes = _read_many(open_prompts(config), config, tokenizer, 1)
        return table, [note, *notes]


def _first(batches: Iterator[Batch], rows: int) -> list[Batch]:
    """Return batches of at least `rows` rows; all of them if there are fewer."""
    first: list[Batch] = []
    while rows > 0 and (batch := next(batches, None)) is not None:
        first.append(batch)
        rows -= len(batch)
    return first


def _read_many(source: OpenedSource, config: PromptConfig, tokenizer: Any, count: int) -> tuple[PromptTable, list[str]]:
    """Return prompts and notes, from the cache if it has them; they are kept in it otherwise."""
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
