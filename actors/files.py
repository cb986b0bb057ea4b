"""Write files and directories whole or not at all: fill a temporary neighbour, then rename it into place.

A reader never sees half a file, and a full disk leaves the old file. Standard library only.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""Prefix of names that no reader looks at; a crash may leave some behind."""
REPLACED = f"{TEMPORARY}replaced-"
"""Prefix of an old directory's name while the new one is swapped in."""


def atomic_write(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a whole file, text as UTF-8, or leave `path` as it was. Raises OSError."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value per line; make the file's directory if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` at the end, or remove it after an error."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        yield temporary
        replace_file(temporary, path, durable=durable)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield an empty directory to fill; swap it in for `path` at the end, or remove it after an error."""
    stage = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        replace_directory(stage, path, durable=durable)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def replace_file(temporary: Path, path: Path, *, durable: bool = False) -> None:
    """Rename a written file to `path`. With `durable`, flush file, then name. Raises OSError."""
    if durable:
        sync(temporary)
    temporary.replace(path)
    if durable:
        sync(path.parent)


def replace_directory(stage: Path, path: Path, *, durable: bool = False) -> None:
    """Swap a filled directory in for `path`, or leave `path` as it was. Raises OSError.

    A crash between the two renames leaves the old directory under its `REPLACED` name. With `durable`, everything in
    `stage` is flushed first, then the new name, and only then is the old directory removed.
    """
    old = path.with_name(f"{REPLACED}{path.name}")
    if durable:
        sync_tree(stage)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        stage.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    if durable:
        sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, and `root` itself."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def open_lock(path: str | Path, *, create: bool = True, mode: int = 0o600, own: bool = True) -> int:
    """Open a lock file in a place where others may have put something else; return its descriptor.

    Raises OSError, also unless the file is regular and, if `own`, belongs to this user. A pipe or a link never blocks.
    """
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (found.st_uid == os.geteuid() or not own):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EPERM, "it is no regular file" + " of this user" * own, str(path))


def discard(path: str | Path) -> None:
    """Remove a file, a link, or a directory with everything in it, if it exists."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):  # a read-only file system refuses to remove even a missing file
        path.unlink(missing_ok=True)


def nearest_folder(path: Path) -> tuple[Path, bool]:
    """Return `path` or its nearest existing parent, and whether a directory can be created there. Writes nothing."""
    existing = path.absolute()
    while not _exists(existing):
        existing = existing.parent
    made = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return existing, made and os.statvfs(existing).f_blocks > 0  # 0 below /proc, where nothing can be made


def unwritable(path: Path) -> str | None:
    """Say why a directory cannot be made at `path`; None if it can. Writes nothing."""
    folder, writable = nearest_folder(path)
    if not writable:
        return f"{folder} is not a writable directory"
    longest = os.pathconf(folder, "PC_NAME_MAX")
    size, part = max((len(os.fsencode(each)), each) for each in path.absolute().parts)
    return None if size <= longest else f"the name {part[:40]}... has {size} bytes, of at most {longest}"


def _exists(path: Path) -> bool:
    """Return whether a path exists. A dangling link counts, because nothing can be made in its place."""
    try:
        return os.path.lexists(path)
    except OSError:  # a name that is too long
        return False


def megabytes(nbytes: int) -> str:
    """Write a size of files in MB, below 0.1 MB in kB."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:,.1f} kB"
