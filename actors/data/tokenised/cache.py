"""Keep tokenised prompts on disk for the next start, under a hash of the inputs that they depend on.

A file is used only if it is complete and has the right identity: it ends with a header that names the identity and
holds a checksum of everything before it. Several runs may share a folder. Must not know rows or tokenizers.
"""

import contextlib
import fcntl
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import xxhash

from actors.data.rows import Problem
from actors.data.tokenised.identity import content_sum
from actors.data.tokenised.parsing import SCHEMA, Part
from actors.data.tokenised.table import Facts, Gathering, PromptTable
from actors.files import TEMPORARY, replace_file

FOLDER_VARIABLE, LIMIT_VARIABLE = "OFFBEAT_CACHE", "OFFBEAT_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
SUFFIX = ".prompts"
ABANDONED_SECONDS = 3600.0
"""Age from which an unlocked temporary file counts as the remains of a dead process."""
_MAGIC = b"OFFBEATP"
_TAIL_BYTES = len(_MAGIC) + 8 + 32  # after the header: its length and its checksum


class NotKeptError(Exception):
    """The prompts can be read but not kept on disk; the message says why."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of tokenised prompts."""

    folder: Path
    limit: int
    """Most bytes of all files together."""

    def load(self, identity: str) -> PromptTable | None:
        """Return the prompts of an identity; None if the folder has no file of it that can be trusted."""
        path = self._path(identity)
        try:
            file = path.open("rb")
        except OSError:
            return None
        try:
            table = _table(file, identity)
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            table = None
        if table is None:
            file.close()
            return None
        with contextlib.suppress(OSError):  # the time of its last use, for `_shrink`
            os.utime(path)
        return table

    def store(
        self, identity: str, parts: Iterable[Part], unchanged: Callable[[], bool]
    ) -> tuple[PromptTable, str | None]:
        """Write parts as they come; return the prompts, mapped from the file, and a reason if it is not kept.

        `unchanged` is called at the end: it returns whether the parts still have that identity. Raises NotKeptError if
        the disk refuses; `parts` are then used up.
        """
        temporary: str | None = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, suffix=SUFFIX, dir=self.folder)
            path = Path(temporary)
            file = os.fdopen(descriptor, "r+b")
            _lock(file, fcntl.LOCK_SH)  # until the prompts are no longer used
            gathering = Gathering()
            size = _write_columns(file, gathering.note(parts))
            content = _mapped(file, size)
            table = PromptTable(content, gathering.facts(content), gathering.others, file)
            reason = self._why_not(table, size, unchanged)
            if reason is None:
                _write_header(file, size, identity, table.facts)
                # Not flushed to the disk: a file that a crash has torn does not match its checksum.
                replace_file(path, self._path(identity))
                temporary = None
                self._shrink(self._path(identity))
        except (OSError, pyarrow.ArrowException) as error:
            raise NotKeptError(str(error)) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        return table, reason

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}{SUFFIX}"

    def _why_not(self, table: PromptTable, size: int, unchanged: Callable[[], bool]) -> str | None:
        if not table.complete:
            return "they have values that JSON does not hold"
        if size > self.limit:
            return f"they have {size / 1e9:.1f} GB, more than {LIMIT_VARIABLE} {self.limit / 1e9:g}"
        return None if unchanged() else "their files changed as they were read"

    def _shrink(self, kept: Path) -> None:
        """Remove the least recently used files until all together are within the limit."""
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                found = path.stat()
                abandoned = path.name.startswith(TEMPORARY) and found.st_mtime < time.time() - ABANDONED_SECONDS
                files.append((0.0 if abandoned else found.st_mtime, found.st_size, path, abandoned))
        total = sum(size for _, size, _, _ in files)
        for _, size, path, abandoned in sorted(files):
            working = path == kept or (path.name.startswith(TEMPORARY) and not abandoned)
            if (total > self.limit or abandoned) and not working and _removed(path):
                total -= size


def from_environment(environment: Mapping[str, str] = os.environ) -> Cache | None:
    """Return the cache that the environment names; None if it is off. Raises NotKeptError if a variable is wrong."""
    named = environment.get(FOLDER_VARIABLE)
    if named == "off":
        return None
    limit = environment.get(LIMIT_VARIABLE, "")
    try:
        bytes_ = int(float(limit or DEFAULT_LIMIT_GB) * 1e9)
    except (ValueError, OverflowError):
        raise NotKeptError(f"{LIMIT_VARIABLE} is {limit!r}, not a number of gigabytes") from None
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Cache(Path(named or f"{base}/offbeat").expanduser().absolute(), bytes_)
    except RuntimeError as error:  # there is no home
        raise NotKeptError(str(error)) from error


def _lock(file: BinaryIO, kind: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, kind)


def _removed(path: Path) -> bool:
    """Remove a file unless a process uses it: on a network file system that process would lose it."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- one file: columns, header, length and checksum of it


def _write_columns(file: BinaryIO, batches: Iterator[Any]) -> int:
    with pyarrow.ipc.new_file(pyarrow.PythonFile(file, "w"), SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    file.flush()
    return file.tell()


def _mapped(file: BinaryIO, size: int) -> Any:
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return pyarrow.ipc.open_file(pyarrow.py_buffer(mapped)).read_all()


def _write_header(file: BinaryIO, size: int, identity: str, facts: Facts) -> None:
    file.seek(0)
    header = {"identity": identity, "columns_bytes": size, "columns_sum": content_sum(file, size), **asdict(facts)}
    written = json.dumps(header).encode()
    file.seek(size)
    file.write(written + xxhash.xxh3_128_hexdigest(written).encode() + len(written).to_bytes(8, "little") + _MAGIC)
    file.flush()


def _table(file: BinaryIO, identity: str) -> PromptTable | None:
    """Return the prompts of a file if it belongs to this user, is whole, and has this identity.

    Broken content may raise any exception.
    """
    if os.fstat(file.fileno()).st_uid != os.geteuid():
        return None
    _lock(file, fcntl.LOCK_SH)
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL_BYTES))
    tail = file.read()
    length = int.from_bytes(tail[32:40], "little")
    if tail[40:] != _MAGIC or length > end - _TAIL_BYTES:
        return None
    file.seek(end - _TAIL_BYTES - length)
    written = file.read(length)
    if xxhash.xxh3_128_hexdigest(written).encode() != tail[:32]:
        return None
    header = json.loads(written)
    size, expected = header.pop("columns_bytes"), header.pop("columns_sum")
    file.seek(0)
    if header.pop("identity") != identity or content_sum(file, size) != expected:
        return None
    problems = [Problem(**each) for each in header.pop("problems")]
    return PromptTable(_mapped(file, size), Facts(problems=problems, **header), {}, file)
