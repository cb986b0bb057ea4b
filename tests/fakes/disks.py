"""A disk that fails: every operation below a directory is counted, and from a chosen one on refused."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

MAKES = ("open", "mkdir", "rename", "write", "fsync")
"""Operations that a full disk may refuse."""
REMOVES = ("unlink", "rmdir")
OPENS = ("open", "read", "list")
"""Operations that need a descriptor."""
REFUSED = {errno.ENOSPC: MAKES, errno.EROFS: MAKES + REMOVES, errno.EMFILE: OPENS}
"""Kinds of operations that each fault refuses."""


class FaultyDisk:
    """Everything below `root` that Python code and pyarrow ask of the disk.

    Files are opened with Python's own buffers over a raw file, so that what is refused is what reaches the system.
    Operation number `first`, from 0, and all later ones are refused with `fault` until `repair`.
    """

    def __init__(self, root: Path, fault: int, patch: pytest.MonkeyPatch) -> None:
        self.operations: list[tuple[str, str]] = []
        """Kind and path of each so far, the refused ones too."""
        self.first: int | None = None
        self._root, self._fault, self._kinds = os.path.realpath(root), fault, REFUSED[fault]
        self._real_open, self._real_os_open = builtins.open, os.open
        for module in (builtins, io):
            patch.setattr(module, "open", self._open)
        patch.setattr(os, "open", self._os_open)
        # Nothing is waited for: what a crash of the machine leaves is not tried here.
        patch.setattr(os, "fsync", self._before(lambda descriptor: None, "fsync"))
        patch.setattr(os, "write", self._before(os.write, "write"))
        patch.setattr(os, "listdir", self._before(os.listdir, "list"))
        patch.setattr(os, "scandir", self._before(os.scandir, "list"))
        for name in (*MAKES, *REMOVES, "replace", "remove"):
            if name not in ("open", "write", "fsync"):
                kind = {"replace": "rename", "remove": "unlink"}.get(name, name)
                patch.setattr(os, name, self._before(getattr(os, name), kind))
        writer = pyarrow.parquet.ParquetWriter
        patch.setattr(writer, "__init__", self._of_arrow(writer.__init__, "open"))
        for name in ("write_table", "close"):
            patch.setattr(writer, name, self._of_arrow(getattr(writer, name), "write"))

    @property
    def refused(self) -> tuple[str, str] | None:
        """Kind and path of the first operation that was refused."""
        return None if self.first is None or len(self.operations) <= self.first else self.operations[self.first]

    def repair(self) -> None:
        """Refuse nothing any more."""
        self.first = None

    def ask(self, kind: str, path: Any) -> None:
        """Count an operation; raise OSError if it is refused."""
        try:
            name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        except (OSError, TypeError):
            return
        name = os.path.abspath(os.fsdecode(name)).removesuffix(" (deleted)")
        if kind not in self._kinds or not f"{name}/".startswith(f"{self._root}/"):
            return
        self.operations.append((kind, os.path.relpath(name, self._root)))
        if self.first is not None and len(self.operations) > self.first:
            raise OSError(self._fault, os.strerror(self._fault), name)

    def _before(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def asked(path: Any = ".", *arguments: Any, **keywords: Any) -> Any:
            self.ask(kind, path)
            return real(path, *arguments, **keywords)

        return asked

    def _of_arrow(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def asked(writer: Any, *arguments: Any, **keywords: Any) -> Any:
            if kind == "open":
                writer.place = arguments[0]
            if kind == "open" or writer.is_open:
                self.ask(kind, writer.place)
            return real(writer, *arguments, **keywords)

        return asked

    def _os_open(self, path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR) and flags & os.O_CREAT
        self.ask("open" if writes else "read", path)
        return self._real_os_open(path, flags, *arguments, **keywords)

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **keywords: Any) -> Any:
        if isinstance(file, int) or not f"{os.path.abspath(os.fsdecode(file))}/".startswith(f"{self._root}/"):
            return self._real_open(file, mode, buffering, *rest, **keywords)
        if not set(mode) & set("wax+"):
            self.ask("read", file)
            return self._real_open(file, mode, buffering, *rest, **keywords)
        self.ask("open", file)
        raw = _Raw(self, file, mode)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **keywords)


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, disk: FaultyDisk, file: Any, mode: str) -> None:
        super().__init__(file, mode.replace("b", "").replace("t", ""))
        self._disk = disk

    def write(self, data: Any) -> int:
        self._disk.ask("write", self.name)
        return super().write(data)
