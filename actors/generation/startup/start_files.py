"""Remove the file names by which an engine's processes find each other, so that a killed engine leaves none.

vLLM removes its shared-memory segments, sockets and rendezvous file only at an orderly end, but engines are mostly
killed. Mapped memory and connections work on without their names, and end with the processes, also after kill -9.
"""

import contextlib
import fcntl
import itertools
import os
import re
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

_SEGMENT = re.compile(r"/dev/shm/(?:psm_|vllm_dist_)[^\s/]+$", re.MULTILINE)
"""Path of a mapped segment (queues, collectives of CPU workers), at the end of a line of /proc/PID/maps."""
_SOCKET = re.compile(r"(\d+) (/\S+)$", re.MULTILINE)
"""Inode and path of a bound socket, at the end of a line of /proc/net/unix."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Name of one of vLLM's sockets."""
_NOTE = f"offbeat-{os.getuid()}-engine-"
"""Prefix of notes in the temporary directory."""
_RENDEZVOUS = re.compile(r"file://(/.+/vllm_dist_\w+)")
"""File at which workers meet, in their `distributed_init_method`. torch ends without error if the file is gone."""


def segments_in(maps: str) -> set[str]:
    """Return the paths of vLLM's segments that still have their name, from the text of a /proc/PID/maps."""
    return set(_SEGMENT.findall(maps))


def sockets_in(table: str, inodes: Iterable[int]) -> set[str]:
    """Return the paths of the sockets with these `inodes`, from the text of /proc/net/unix."""
    own = set(inodes)
    return {path for inode, path in _SOCKET.findall(table) if int(inode) in own}


def of_process(pid: int | str = "self", rendezvous: str = "", proc: Path = Path("/proc")) -> list[str]:
    """Return the names that vLLM made or uses in a process. `rendezvous`: its `distributed_init_method`.

    Raises OSError if there is no such process.
    """
    inodes = set()
    for link in (proc / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(int(target[len("socket:[") : -1]))
    sockets = sockets_in((proc / "net" / "unix").read_text(), inodes)
    met = _RENDEZVOUS.fullmatch(rendezvous)
    return sorted(
        segments_in((proc / str(pid) / "maps").read_text())
        | {path for path in sockets if _is_vllm_s(path)}
        | ({met[1]} if met else set())
    )


def remove(names: Iterable[str]) -> None:
    """Remove these names, once all of the engine's processes have met; their memory and sockets stay in use."""
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name)


def forget(names: Iterable[str]) -> None:
    """Unregister these from Python's resource tracker, shared by the engine's processes, which would remove them."""
    for name in set(names):
        if name.startswith("/dev/shm/psm_"):
            resource_tracker.unregister(name.removeprefix("/dev/shm"), "shared_memory")


def expect_missing() -> None:
    """Silence vLLM's destructors in this process if they do not find a segment, because it was removed before."""
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, FileNotFoundError) and segments_in(f"/dev/shm{error.filename}")):
            shown(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def noted(every_seconds: float = 0.25) -> Iterator[None]:
    """Note in a file, within the context, the names that this process and its children make.

    First removes the names in notes of dead engines. A start lasts half a minute; if all of the engine is killed
    meanwhile, the next engine on the host finds the note.
    """
    remove_dead()
    descriptor, hidden = tempfile.mkstemp(prefix=f".{_NOTE}", suffix=".names")
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the last process of the engine dies
    note = Path(hidden).rename(Path(hidden).with_name(Path(hidden).name.removeprefix(".")))
    over = threading.Event()
    thread = threading.Thread(target=_note, args=(descriptor, over, every_seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        note.unlink(missing_ok=True)
        os.close(descriptor)


def remove_dead() -> None:
    """Remove this user's notes whose engines are dead, and the names in them."""
    for path in Path(tempfile.gettempdir()).glob(f"{_NOTE}*.names"):
        with contextlib.suppress(OSError):
            # Anyone may put a file, a link or a FIFO there.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor) as file:
                facts = os.fstat(descriptor)
                if facts.st_uid == os.getuid() and stat.S_ISREG(facts.st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(name for name in file.read().splitlines() if _is_vllm_s(name))
                    path.unlink()


def _note(descriptor: int, over: threading.Event, every_seconds: float) -> None:
    """Append each new name of this process and its children to a file until `over` is set."""
    known: set[str] = set()
    while not over.wait(every_seconds):
        children = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
        with contextlib.suppress(OSError):  # a process or a thread ended meanwhile
            for pid in ("self", *itertools.chain.from_iterable(children)):
                new = sorted(set(of_process(pid)) - known)
                os.write(descriptor, "".join(f"{name}\n" for name in new).encode())
                known.update(new)


def _is_vllm_s(name: str) -> bool:
    path = Path(name)
    named = path.parent == Path(tempfile.gettempdir()) and _UUID.fullmatch(path.name)
    return bool(_SEGMENT.fullmatch(name) or named)
