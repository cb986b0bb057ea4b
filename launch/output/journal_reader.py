"""Read a run's journal back: batches in order, with exactly the values that were written.

Knows the files of `journal.py`, and compares them with their checksums before it reads any. Must not know the learner.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from actors.errors import UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt, with_tuples
from actors.replay_buffer.buffer import Batch
from launch.output.journal import SEALED, SETTINGS
from launch.output.journal_files import CHECKSUMS, Checksums, Segment, require_run, require_whole, segments
from launch.settings.loading import with_current_keys
from launch.settings.run import RunConfig

_ROWS = 64  # groups decoded at a time


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One update of the journal."""

    update: int
    version: int
    lease_indices: tuple[int, ...]
    staleness: tuple[int, ...]


class JournalReader:
    """The closed part of the journal below `directory`.

    Constructor and methods raise UsageError if there is no journal, it is not as it was written, it cannot be read, or
    another run than `run` wrote it.
    """

    def __init__(self, directory: Path, run: str | None = None) -> None:
        self._segments = segments(directory)
        if not self._segments:
            raise UsageError(
                f"{directory} holds no journal; give the directory of a training run that has made a checkpoint or "
                "ended, with journal.enabled true"
            )
        with _reading(directory):
            checksums = Checksums(directory)
            self.unverified = require_whole(checksums, self._segments)
            """Segments of an older version, which have no checksums."""
        require_run(checksums, run)
        self._rows: dict[Segment, list[UpdateRow]] = {}
        self._settings: dict[Segment, dict[str, Any]] = {}
        self._leases: dict[Segment, list[int]] = {}
        for segment in self._segments:
            with _reading(segment.updates):
                table = pyarrow.parquet.read_table(segment.updates)
                if SEALED in table.schema.metadata and segment in self.unverified:
                    raise ValueError(f"it was written with checksums, and {CHECKSUMS} is missing")
                self._rows[segment] = [UpdateRow(**with_tuples(row)) for row in table.to_pylist()]
                self._settings[segment] = with_current_keys(json.loads(table.schema.metadata[SETTINGS]), RunConfig)
            with _reading(segment.groups):
                table = pyarrow.parquet.read_table(segment.groups, columns=["lease_index"])
                self._leases[segment] = table.column("lease_index").to_pylist()
        self.first = covered_from(self.rows, {index for leases in self._leases.values() for index in leases})
        """First update from which every batch is complete."""
        self.end = self.rows[-1].update + 1
        """Number of the run's updates up to the end of the journal."""

    @property
    def rows(self) -> list[UpdateRow]:
        """All updates, in order."""
        return [row for segment in self._segments for row in self._rows[segment]]

    def settings(self, start: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the `learning_settings` of updates from `start` on, each with the first update it applies to."""
        found: list[tuple[int, dict[str, Any]]] = []
        for segment in self._segments:
            settings = self._settings[segment]
            if segment.last >= start and (not found or found[-1][1] != settings):
                found.append((max(start, segment.first), settings))
        return found

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield the batches of updates from `start` on; `start` must be at least `first`."""
        last_use = {index: row.update for row in self.rows if row.update >= start for index in row.lease_indices}
        held: dict[int, Group] = {}
        for segment in self._segments:
            if last_use.keys().isdisjoint(self._leases[segment]):
                groups: Iterator[Group] = iter(())
            else:
                groups = (group for group in _groups(segment) if group.lease.index in last_use)
            for row in self._rows[segment]:
                if row.update < start:
                    continue
                # Groups are stored in the order of their first consumption.
                while any(index not in held for index in row.lease_indices):
                    group = next(groups, None)
                    if group is None:
                        raise UsageError(
                            f"{segment.groups} lacks groups of update {row.update}; restore it from a copy"
                        )
                    held[group.lease.index] = group
                yield Batch(row.update, row.version, tuple(held[each] for each in row.lease_indices), row.staleness)
                held = {index: group for index, group in held.items() if last_use[index] > row.update}
            # First consumed before `start`, and again after it.
            held |= {group.lease.index: group for group in groups}


def covered_from(rows: Sequence[UpdateRow], present: set[int]) -> int:
    """Return the first update from which no update and no group is missing.

    `rows` holds at least one update, in order; `present` the lease indices of the groups on disk. If even the last
    update lacks a group, return the number after it.
    """
    first = rows[-1].update + 1
    for row in reversed(rows):
        if row.update != first - 1 or not present.issuperset(row.lease_indices):
            break
        first = row.update
    return first


def _groups(segment: Segment) -> Iterator[Group]:
    with _reading(segment.groups):
        for rows in pyarrow.parquet.ParquetFile(segment.groups).iter_batches(_ROWS):
            yield from map(_group, rows.to_pylist())


def _group(row: Mapping[str, Any]) -> Group:
    prompt = Prompt(row["prompt_id"], tuple(row["prompt_token_ids"]), row["prompt"])
    return Group(
        Lease(row["lease_index"], row["attempt"], prompt, row["min_version"], deadline=0.0),
        tuple(Completion(**with_tuples(completion)) for completion in row["completions"]),
        Judgement(**with_tuples({"scores": row["scores"], "preferences": row["preferences"]})),
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # a file without a checksum fails in as many ways as it can be changed
        raise UsageError(f"{path} cannot be read: {error}; restore it from a copy") from error
