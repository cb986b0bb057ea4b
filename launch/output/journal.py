"""The journal of a run: every group that was trained on, once, and the updates that consumed it. Parquet files.

A pair of files is closed every `journal.updates_per_file` updates and before every checkpoint, so that everything a
checkpoint covers is on disk. Groups are written update by update: memory holds one batch. `journal_files.py` names
them and keeps their checksums, `journal_reader.py` reads them back. Must not know loop, learner or judges.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from actors.errors import writing
from actors.files import TEMPORARY, replace_file
from actors.records import Group
from actors.replay_buffer.buffer import Batch
from launch.output.group_table import GROUPS, group_table
from launch.output.journal_files import Checksums, Segment, require_whole, segments
from launch.settings.run import RunConfig

SETTINGS = b"offbeat.settings"
"""Key in the schema metadata of a file of updates: `learning_settings` as JSON."""
_GROUPS, _UPDATES = f"{TEMPORARY}groups.parquet", f"{TEMPORARY}updates.parquet"
SEALED = b"offbeat.checksums"
"""Key beside it: the files were written with checksums."""
UPDATES = pyarrow.schema(
    [
        ("update", pyarrow.int64()),
        ("version", pyarrow.int32()),
        ("lease_indices", pyarrow.list_(pyarrow.int64())),
        ("staleness", pyarrow.list_(pyarrow.int32())),
    ]
)
"""A row is an `actors.replay_buffer.buffer.Batch`, with groups by lease."""


_OF_THE_MACHINE = {"port", "max_skipped_updates", "offload_reference", "environment", "resources", "labels"}
"""Settings of the learner that change no weights."""


def learning_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide, with the groups, which weights the learner reaches. JSON values."""
    return {
        "updates": config.updates,
        "learner": config.learner.model_dump(mode="json", exclude=_OF_THE_MACHINE),
        "model.head_dtype": config.model.head_dtype,
        "sampling.temperature": config.sampling.temperature,
        "judging.missing_eos_score": config.judging.missing_eos_score,
        **({"reference": "recorded with the completions"} if config.reference.count else {}),
    }


class Journal:
    """Write the journal of one run below `directory`.

    A resumed run continues at update `resume_from`: later records of an earlier part are removed. `say` is called once
    if the oldest files are removed because of `journal.max_mib`. `run` identifies the run. All methods raise RunError
    if the directory cannot be written; the constructor UsageError if a file that it reads is not as it was written.
    """

    def __init__(
        self,
        directory: str | Path,
        config: RunConfig,
        say: Callable[[str], None],
        *,
        resume_from: int = 0,
        run: str | None = None,
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
            if self._config.enabled:
                # Once: if the run's directory was exchanged, nothing is written to another one.
                self._directory.mkdir(parents=True, exist_ok=True)
            self._checksums = Checksums(self._directory, run)
            _truncate(self._directory, resume_from, self._checksums)
            if self._reuse:
                self._written = _oldest_versions(self._directory, self._checksums)

    def add(self, batch: Batch) -> None:
        """Record the batch of an update, even if it is empty."""
        if not self._config.enabled:
            return
        fresh = [group for group in batch.groups if group.lease.index not in self._written]
        if self._reuse:
            oldest = self._written | {group.lease.index: group.oldest_version for group in fresh}
            limit = batch.version - self._max_staleness
            self._written = {index: version for index, version in oldest.items() if version >= limit}
        with self._writing(), self._whole():
            if self._open is None:
                self._open = _OpenSegment(self._directory, batch.update, self._settings, self._checksums)
            self._open.add(batch, fresh)
            if self._open.length == self._config.updates_per_file:
                self._close_segment()

    def flush(self) -> None:
        """Close the open segment, so that everything added is on disk."""
        with self._writing(), self._whole():
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
            _remove(kept.pop(0), self._checksums)
            if not self._dropped:
                self._dropped = True
                self._say(
                    f"warning: the journal exceeds journal.max_mib {self._config.max_mib}: removing its oldest files; "
                    "`offbeat replay` starts from the oldest checkpoint that the rest covers"
                )

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Give the open segment up after any error: nobody can say what of it is on disk."""
        try:
            yield
        except BaseException:
            if self._open is not None:
                self._open.give_up()
                self._open = None
            raise

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(
            f"the journal in {self._directory}",
            "or set journal.enabled=false, then use --resume",
            pyarrow.ArrowException,
        )


class _OpenSegment:
    """A segment being written, under temporary names."""

    def __init__(self, directory: Path, first: int, settings: str, checksums: Checksums) -> None:
        self._directory, self._first, self._checksums = directory, first, checksums
        self._rows: list[dict[str, Any]] = []
        self._schema = UPDATES.with_metadata({SETTINGS: settings, SEALED: b"1"})
        self._groups = directory / _GROUPS
        self._writer = pyarrow.parquet.ParquetWriter(self._groups, GROUPS, compression="zstd")

    @property
    def length(self) -> int:
        """Number of updates so far."""
        return len(self._rows)

    def add(self, batch: Batch, fresh: Sequence[Group]) -> None:
        if fresh:
            self._writer.write_table(group_table(fresh, batch.update))
        self._rows.append(
            {
                "update": batch.update,
                "version": batch.version,
                "lease_indices": [group.lease.index for group in batch.groups],
                "staleness": batch.staleness,
            }
        )

    def give_up(self) -> None:
        """Leave the file as it is. Otherwise the writer, once it is collected, would try to close it again."""
        self._writer.is_open = False

    def close(self) -> None:
        self._writer.close()
        segment = Segment(self._first, self._rows[-1]["update"], self._directory)
        _finish(segment, pyarrow.Table.from_pylist(self._rows, schema=self._schema), self._checksums)


# ---------------------------------------------------------------- files


def _finish(segment: Segment, updates: pyarrow.Table, checksums: Checksums) -> None:
    """Give the groups in `_GROUPS`, and `updates`, the files of `segment`."""
    directory = segment.directory
    renamed = {directory / _GROUPS: segment.groups, directory / _UPDATES: segment.updates}
    pyarrow.parquet.write_table(updates, directory / _UPDATES, compression="zstd")
    checksums.add(renamed)
    # Groups first: a file of updates promises that its groups exist.
    for temporary, path in renamed.items():
        replace_file(temporary, path, durable=True)


def _remove(segment: Segment, checksums: Checksums) -> None:
    segment.remove()
    checksums.forget((segment.groups.name, segment.updates.name))


def _truncate(directory: Path, update: int, checksums: Checksums) -> None:
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
            require_whole(checksums, [segment])
            groups, updates = (
                pyarrow.parquet.read_table(path, filters=[("update", "<", update)])
                for path in (segment.groups, segment.updates)
            )
            pyarrow.parquet.write_table(groups, directory / _GROUPS, compression="zstd")
            _finish(Segment(segment.first, update - 1, directory), updates, checksums)
        _remove(segment, checksums)
    # Of files that a crash left without their names.
    checksums.forget([name for name in checksums.files if not (directory / name).is_file()])


def _oldest_versions(directory: Path, checksums: Checksums) -> dict[int, int]:
    """Lease index -> oldest version, for all groups below `directory`."""
    found: dict[int, int] = {}
    require_whole(checksums, segments(directory))
    for segment in segments(directory):
        table = pyarrow.parquet.read_table(segment.groups, columns=["lease_index", "oldest_version"])
        found |= dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return found
