"""The journal of a run: every group that was trained on, once, and the updates that consumed it. Parquet files.

    journal/
      groups-0000000-0000049.parquet     groups first consumed by updates 0 to 49, in order of consumption
      updates-0000000-0000049.parquet    one row per update: the leases of its batch, in order

A pair of files is closed every `journal.updates_per_file` updates and before every checkpoint, so that everything a
checkpoint covers is on disk. Groups are written update by update: memory holds one batch. `journal_reader.py` reads
them back. Must not know loop, learner or judges.
"""

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from actors.errors import writing
from actors.files import TEMPORARY, atomic_file, replace_file
from actors.records import Group
from actors.replay_buffer.buffer import Batch
from launch.settings.run import RunConfig

SETTINGS = b"offbeat.settings"
"""Key in the schema metadata of a file of updates: `learning_settings` as JSON."""
_NAME = re.compile(r"updates-(\d+)-(\d+)\.parquet")
_INTS, _FLOATS = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float64())
_COMPLETION = pyarrow.struct(
    [
        ("token_ids", _INTS),
        ("logprobs", _FLOATS),
        ("versions", _INTS),
        ("text", pyarrow.string()),
        ("finished", pyarrow.bool_()),
        ("opponent", pyarrow.bool_()),
    ]
)
GROUPS = pyarrow.schema(
    [
        ("lease_index", pyarrow.int64()),
        ("attempt", pyarrow.int32()),
        ("update", pyarrow.int64()),
        ("prompt_id", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("prompt_token_ids", _INTS),
        ("min_version", pyarrow.int32()),
        ("oldest_version", pyarrow.int32()),
        ("completions", pyarrow.list_(_COMPLETION)),
        ("scores", _FLOATS),
        ("preferences", pyarrow.list_(_FLOATS)),
    ]
)
"""`update` consumed the group first; the other columns are fields of `actors.records`."""
UPDATES = pyarrow.schema(
    [
        ("update", pyarrow.int64()),
        ("version", pyarrow.int32()),
        ("lease_indices", pyarrow.list_(pyarrow.int64())),
        ("staleness", _INTS),
    ]
)
"""A row is an `actors.replay_buffer.buffer.Batch`, with groups by lease."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A closed pair of files."""

    first: int
    last: int  # update numbers, inclusive
    directory: Path

    @property
    def groups(self) -> Path:
        return self.directory / f"groups-{self._range}.parquet"

    @property
    def updates(self) -> Path:
        return self.directory / f"updates-{self._range}.parquet"

    @property
    def _range(self) -> str:
        return f"{self.first:07d}-{self.last:07d}"

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in (self.groups, self.updates))

    def remove(self) -> None:
        """Delete both files, updates first: without them the groups count as unfinished."""
        self.updates.unlink(missing_ok=True)
        self.groups.unlink(missing_ok=True)


def segments(directory: Path) -> list[Segment]:
    """Return the closed segments below `directory`, in order."""
    names = [_NAME.fullmatch(path.name) for path in directory.glob("updates-*.parquet")]
    return sorted(Segment(int(name[1]), int(name[2]), directory) for name in names if name is not None)


def learning_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide, with the groups, which weights the learner reaches. JSON values."""
    return {
        "updates": config.updates,
        "learner": config.learner.model_dump(mode="json", exclude={"port", "max_skipped_updates"}),
        "sampling.temperature": config.sampling.temperature,
        "judging.missing_eos_score": config.judging.missing_eos_score,
    }


class Journal:
    """Write the journal of one run below `directory`.

    A resumed run continues at update `resume_from`: later records of an earlier part are removed. `say` is called once
    if the oldest files are removed because of `journal.max_mib`. All methods raise RunError if the directory cannot be
    written.
    """

    def __init__(
        self, directory: str | Path, config: RunConfig, say: Callable[[str], None], *, resume_from: int = 0
    ) -> None:
        self._directory, self._config, self._say = Path(directory), config.journal, say
        self._settings = json.dumps(learning_settings(config))
        self._max_staleness = config.replay.max_staleness
        self._reuse = config.replay.max_reuse > 1
        self._open: _OpenSegment | None = None
        self._dropped = False
        self._written: dict[int, int] = {}
        """Recorded groups that may be consumed again: lease index -> oldest version."""
        with self._writing():
            _truncate(self._directory, resume_from)
            if self._reuse:
                self._written = _oldest_versions(self._directory)

    def add(self, batch: Batch) -> None:
        """Record the batch of an update, even if it is empty."""
        if not self._config.enabled:
            return
        fresh = [group for group in batch.groups if group.lease.index not in self._written]
        if self._reuse:
            oldest = self._written | {group.lease.index: group.oldest_version for group in fresh}
            limit = batch.version - self._max_staleness
            self._written = {index: version for index, version in oldest.items() if version >= limit}
        with self._writing():
            if self._open is None:
                self._open = _OpenSegment(self._directory, batch.update, self._settings)
            self._open.add(batch, fresh)
            if self._open.length == self._config.updates_per_file:
                self._close_segment()

    def flush(self) -> None:
        """Close the open segment, so that everything added is on disk."""
        with self._writing():
            self._close_segment()

    def _close_segment(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        kept = segments(self._directory)
        sizes = {segment: segment.nbytes for segment in kept}
        # The newest stays, however large: the latest updates are the ones users look at first.
        while len(kept) > 1 and sum(sizes[segment] for segment in kept) > self._config.max_mib << 20:
            kept.pop(0).remove()
            if not self._dropped:
                self._dropped = True
                self._say(
                    f"warning: the journal exceeds journal.max_mib {self._config.max_mib}: removing its oldest files; "
                    "`offbeat replay` starts from the oldest checkpoint that the rest covers"
                )

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(
            f"the journal in {self._directory}",
            "free space there, or set journal.enabled=false, then continue with --resume",
            pyarrow.ArrowException,
        )


class _OpenSegment:
    """A segment being written, under temporary names."""

    def __init__(self, directory: Path, first: int, settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._first = directory, first
        self._rows: list[dict[str, Any]] = []
        self._schema = UPDATES.with_metadata({SETTINGS: settings})
        self._groups = directory / f"{TEMPORARY}groups.parquet"
        self._writer = pyarrow.parquet.ParquetWriter(self._groups, GROUPS, compression="zstd")

    @property
    def length(self) -> int:
        """Number of updates so far."""
        return len(self._rows)

    def add(self, batch: Batch, fresh: Sequence[Group]) -> None:
        if fresh:
            rows = [_row(group, batch.update) for group in fresh]
            self._writer.write_table(pyarrow.Table.from_pylist(rows, schema=GROUPS))
        self._rows.append(
            {
                "update": batch.update,
                "version": batch.version,
                "lease_indices": [group.lease.index for group in batch.groups],
                "staleness": batch.staleness,
            }
        )

    def close(self) -> None:
        self._writer.close()
        segment = Segment(self._first, self._rows[-1]["update"], self._directory)
        # Groups first: a file of updates promises that its groups exist.
        replace_file(self._groups, segment.groups, durable=True)
        _write(segment.updates, pyarrow.Table.from_pylist(self._rows, schema=self._schema))


def _row(group: Group, update: int) -> dict[str, Any]:
    lease, judgement = group.lease, group.judgement
    assert judgement is not None
    return {
        "lease_index": lease.index,
        "attempt": lease.attempt,
        "update": update,
        "prompt_id": _text(lease.prompt.id),
        "prompt": _text(lease.prompt.text),
        "prompt_token_ids": lease.prompt.token_ids,
        "min_version": lease.min_version,
        "oldest_version": group.oldest_version,
        "completions": [
            {field.name: getattr(each, field.name) for field in _COMPLETION} | {"text": _text(each.text)}
            for each in group.completions
        ],
        "scores": judgement.scores,
        "preferences": judgement.preferences,
    }


def _text(text: str) -> str:
    """Text that UTF-8 can hold: JSON data may have half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


# ---------------------------------------------------------------- files


def _truncate(directory: Path, update: int) -> None:
    """Remove the rows of `update` and later ones, and files that a crash left half written."""
    closed = segments(directory)
    whole = {segment.groups for segment in closed}
    for path in [*directory.glob(f"{TEMPORARY}*"), *directory.glob("groups-*.parquet")]:
        if path not in whole:
            path.unlink()
    for segment in closed:
        if segment.last < update:
            continue
        if segment.first < update:
            shorter = Segment(segment.first, update - 1, directory)
            for path, target in ((segment.groups, shorter.groups), (segment.updates, shorter.updates)):
                table = pyarrow.parquet.read_table(path, filters=[("update", "<", update)])
                _write(target, table)
        segment.remove()


def _oldest_versions(directory: Path) -> dict[int, int]:
    """Lease index -> oldest version, for all groups below `directory`."""
    found: dict[int, int] = {}
    for segment in segments(directory):
        table = pyarrow.parquet.read_table(segment.groups, columns=["lease_index", "oldest_version"])
        found |= dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return found


def _write(path: Path, table: pyarrow.Table) -> None:
    with atomic_file(path, durable=True) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
