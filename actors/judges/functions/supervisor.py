"""Run a command, and leave no process of it behind: `supervisor.py PARENT MEGABYTES DESCRIPTOR COMMAND...`.

Runs in a bare interpreter. Ends the command and all its descendants, even in sessions of their own, when the command
ends, when this process gets SIGTERM, or when its parent process PARENT dies in any way. MEGABYTES limits the address
space of each process; 0: no limit. DESCRIPTOR is a file descriptor that only the command keeps. Ends as the command
did: with its exit status, or by its signal.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # <linux/prctl.h>
SIGNALS = (signal.SIGTERM, signal.SIGCHLD)
NOT_STARTED = 127  # exit status for a command that cannot be started, as in a shell

libc = ctypes.CDLL(None)


def wait(child: int) -> int | None:
    """Wait until the child ends, and return its status; None if a signal asks this process to end."""
    while signal.sigwait(SIGNALS) == signal.SIGCHLD:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:  # we must also reap the command's orphans
            if ended[0] == child:
                return ended[1]
    return None


def end_all() -> None:
    """Kill every descendant: as the subreaper, this process becomes the parent of each whose parent has ended."""
    while True:
        for process in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def children() -> list[int]:
    """Return the ids of this process's children."""
    mine = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = file.read().rpartition(b")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if int(parent) == os.getpid():
            mine.append(int(name))
    return mine


def supervise(parent: int, descriptor: int, work: Callable[[int], NoReturn]) -> NoReturn:
    """Fork a child that calls `work` with this process's id. When it ends, kill all descendants, then end as it did."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if inherited as ignored, the kernel would reap children unseen
    libc.prctl(SET_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before its death signal was set
        os._exit(0)
    mine = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            work(mine)
        except BaseException as error:
            os.write(2, f"cannot be started: {error}\n".encode())
            os._exit(NOT_STARTED)
    os.close(descriptor)
    status = wait(child)
    end_all()
    end_as(os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGTERM)


def execute(command: list[str], megabytes: int) -> NoReturn:
    """Replace this process by the command, in a process group of its own."""
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    os.setpgid(0, 0)
    if megabytes:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.execv(command[0], command)


def end_as(code: int) -> NoReturn:
    """End with exit status `code`; if `code` is negative, by the signal -`code`."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main() -> None:
    """Supervise a second supervisor of the command: one of the two is left if Ray kills the children of its workers."""
    parent, megabytes, descriptor = map(int, sys.argv[1:4])
    command = sys.argv[4:]
    supervise(parent, descriptor, lambda outer: supervise(outer, descriptor, lambda _: execute(command, megabytes)))


if __name__ == "__main__":
    main()
