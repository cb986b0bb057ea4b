"""Names that an engine's processes need only until they have found each other, so that nothing of it is left behind.

vLLM removes its shared-memory segments, sockets and rendezvous file at an orderly end, and engines are mostly killed.
What is mapped or connected stays so without its name, and ends with the processes, also after kill -9.
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
"""A segment that a process maps, at the end of a line of its maps: queues, and collectives of CPU workers."""
_SOCKET = re.compile(r"(\d+) (/\S+)$", re.MULTILINE)
"""Inode and path of a bound socket, at the end of a line of /proc/net/unix."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The name of a socket of vLLM's."""
_NOTE = f"offbeat-{os.getuid()}-engine-"
"""Prefix of notes in the temporary directory."""
_RENDEZVOUS = re.compile(r"file://(/.+/vllm_dist_\w+)")
"""Where workers meet, as their `distributed_init_method`. torch does not miss the file at its end."""


def segments_in(maps: str) -> set[str]:
    """Return the paths of vLLM's segments in the text of a /proc/PID/maps that still have their name."""
    return set(_SEGMENT.findall(maps))


def sockets_in(table: str, inodes: Iterable[int]) -> set[str]:
    """Return the paths of the sockets among `inodes` in the text of /proc/net/unix."""
    own = set(inodes)
    return {path for inode, path in _SOCKET.findall(table) if int(inode) in own}


def of_process(pid: int | str = "self", rendezvous: str = "", proc: Path = Path("/proc")) -> list[str]:
    """Return the names that vLLM's part in a process made or uses. `rendezvous`: its `distributed_init_method`.

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
    """Remove these names once all of the engine's processes have met; what they stand for stays in use."""
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name)


def forget(names: Iterable[str]) -> None:
    """Tell Python's tracker, one for all of the engine's processes, that it need not remove these at the end."""
    for name in set(names):
        if name.startswith("/dev/shm/psm_"):
            resource_tracker.unregister(name.removeprefix("/dev/shm"), "shared_memory")


def expect_missing() -> None:
    """Print nothing if vLLM's destructors in this process do not find a segment, because it was removed before."""
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, FileNotFoundError) and segments_in(f"/dev/shm{error.filename}")):
            shown(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def noted(every_seconds: float = 0.25) -> Iterator[None]:
    """Within it, note the names that this process and its children make, and first remove what dead notes name.

    A start lasts half a minute; if everything is killed meanwhile, the next engine on the host finds the note.
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
    """Remove the names in this user's notes whose engines are dead, and the notes."""
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
