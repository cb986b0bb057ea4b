"""The files of a journal: their names, and a checksum of each, kept beside them. Must not know what they hold.

    journal/
      groups-0000000-0000049.parquet     groups first consumed by updates 0 to 49, in order of consumption
      updates-0000000-0000049.parquet    one row per update: the leases of its batch, in order
      checksums.jsonl                    one line per file, only appended; a line also checks all lines before it

A line is on disk before its file has its name. So a file that has no line, or not its line's content, was changed; a
line without a file is of one that was never finished, or was removed because of `journal.max_mib`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from actors.errors import UsageError
from learner.backend.manifest import DamagedError, FileSum, Manifest, summed_up, sums

CHECKSUMS = "checksums.jsonl"
_NAME = re.compile(r"(?:updates|groups)-(\d+)-(\d+)\.parquet")


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


class Checksums:
    """The checksums of the journal in `directory`; `run` identifies its run. A last line that was cut is left out.

    Raises DamagedError if an earlier line is not as it was written.
    """

    def __init__(self, directory: Path, run: str | None = None) -> None:
        self.path, self.run = directory / CHECKSUMS, run
        self.files: dict[str, FileSum] = {}
        self.first: int | None = None
        """First update whose files have checksums: earlier ones are of an older version. None: no file has one."""
        self._check = ""
        self._whole = 0  # bytes of whole lines
        *lines, _ = self.path.read_bytes().split(b"\n") if self.path.is_file() else [b""]
        for number, line in enumerate(lines, 1):
            self._read(number, line)

    def add(self, files: Mapping[Path, Path]) -> None:
        """Record what files hold that will be renamed: present path -> final one. Raises OSError."""
        names = [path.name for path in files.values()]
        bodies: list[dict[str, Any]] = []
        if self.first is None:
            self.first = min(_range_of(name)[0] for name in names)
            bodies = [{"first": self.first, "run": self.run}]
        self.files |= (found := dict(zip(names, sums(files), strict=True)))
        self._append([*bodies, *({"file": name, **asdict(each)} for name, each in found.items())])

    def forget(self, names: Iterable[str]) -> None:
        """Record that these files are gone."""
        gone = [name for name in names if self.files.pop(name, None) is not None]
        if gone:
            self._append([{"file": name, "removed": True} for name in gone])

    def _read(self, number: int, line: bytes) -> None:
        try:
            body = json.loads(line)
            check = body.pop("check")
            if _line(body, check) != line or check != _next(self._check, body):
                raise ValueError("its checksum does not fit")
            if "first" in body:
                self.first, self.run = body["first"], body["run"]
            elif "removed" in body:
                self.files.pop(body["file"], None)
            else:
                self.files[body["file"]] = FileSum(body["bytes"], body["xxh3_128"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"line {number} of {self.path} is not as it was written ({error}); restore the file from a copy"
            ) from error
        self._check, self._whole = check, self._whole + len(line) + 1

    def _append(self, bodies: Sequence[dict[str, Any]]) -> None:
        text, check = b"", self._check
        for body in bodies:
            check = _next(check, body)
            text += _line(body, check) + b"\n"
        with open(self.path, "r+b" if self.path.is_file() else "w+b") as file:
            file.truncate(self._whole)  # an earlier write may have been cut
            file.seek(self._whole)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._check, self._whole = check, self._whole + len(text)


def _next(check: str, body: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(check.encode() + json.dumps(body).encode())


def _line(body: Mapping[str, Any], check: str) -> bytes:
    return json.dumps({**body, "check": check}).encode()


def _range_of(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """State of a journal's files after a check."""

    problems: list[str]  # a sentence for each file that is not as it was written
    torn: bool  # whether that is only the end of the newest ones
    unverified: list[Segment]  # of an older version, without checksums


def verify(checksums: Checksums, wanted: Sequence[Segment]) -> Verdict:
    """Compare the files of segments, in order, with their checksums, in parallel. Raises OSError."""
    first = checksums.first
    unverified = [each for each in wanted if first is None or each.first < first]
    sealed = [each for each in wanted if each not in unverified]
    if not sealed:
        return Verdict([], False, unverified)
    present = {path.name for each in sealed for path in (each.groups, each.updates)}
    newest = {sealed[-1].groups.name, sealed[-1].updates.name}
    # What was removed for space was the oldest, and what was never finished the newest.
    known = {
        name: each
        for name, each in checksums.files.items()
        if name in present or sealed[0].first <= _range_of(name)[0] <= sealed[-1].first
    }
    directory = checksums.path.parent
    earlier = [f"{name} is not in {CHECKSUMS}" for name in sorted(present - known.keys())]
    earlier += Manifest({name: known[name] for name in known.keys() - newest}).problems(directory)
    at_end = Manifest({name: known[name] for name in known.keys() & newest}).problems(directory)
    sizes = {name: (directory / name).stat().st_size for name in known.keys() & newest if (directory / name).is_file()}
    shorter = [name for name, size in sizes.items() if size < known[name].bytes]
    return Verdict(earlier + at_end, len(shorter) == len(at_end) > 0 and not earlier, unverified)


def require_run(checksums: Checksums, run: str | None) -> None:
    """Raise UsageError if another run than `run` wrote the journal; None, or an older version's, is not compared."""
    if None not in (run, checksums.run) and run != checksums.run:
        raise UsageError(
            f"the journal in {checksums.path.parent} is of run {checksums.run}, and the directory of run {run}; "
            "restore the run's own"
        )


def require_whole(checksums: Checksums, wanted: Sequence[Segment]) -> list[Segment]:
    """Return the segments without checksums. Raises DamagedError if a file is not as it was written; OSError."""
    verdict = verify(checksums, wanted)
    if verdict.problems:
        end = wanted[-1]
        what, remedy = "is not as it was written", "restore it from a copy"
        if verdict.torn:
            what = "is torn at its end"
            remedy += f", or remove {end.groups.name} and {end.updates.name}, and with them updates from {end.first} on"
        raise DamagedError(f"the journal in {checksums.path.parent} {what}: {summed_up(verdict.problems)}; {remedy}")
    return verdict.unverified
