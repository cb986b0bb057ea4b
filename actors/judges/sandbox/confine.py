"""Start a command without rights: `confine.py SETTINGS COMMAND...`. Runs in a bare interpreter.

SETTINGS is JSON: {"paths": read-only directories, "mb", "processes", "cpu_seconds", "disk_mb", "files": {name: text}}.
The command gets its own namespaces for users, processes, network, files and IPC. It sees the interpreter read-only, an
empty working directory in memory, no network and no other process. It runs as the second process of its namespace,
without capabilities; if the first process ends, the kernel kills all others in the namespace.

Exit status: the command's; 125 if the sandbox cannot be made, with the reason on standard error.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

# <sched.h>, <sys/mount.h>, <linux/prctl.h>, <linux/mount.h>
NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE, DETACH = 4096, 16384, 1 << 18, 2
NO_SUID, NO_DEVICES = 2, 4
SET_DEATH_SIGNAL, DROP_BOUND, NO_NEW_PRIVILEGES, SET_DUMPABLE = 1, 24, 38, 4
PIVOT_ROOT, MOUNT_SETATTR = 41 if os.uname().machine == "aarch64" else 155, 442
READ_ONLY = 1
ROOT = b"/tmp"

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library. Raises OSError if it fails."""
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def enter() -> None:
    """Enter namespaces of our own; a user who is not root becomes root in them."""
    uid, gid = os.getuid(), os.getgid()
    call("unshare", NEW_MOUNTS | NEW_IPC | NEW_PIDS | NEW_NETWORK | (NEW_USER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def make_root(settings: dict[str, Any]) -> None:
    """Build a new root from the interpreter's directories, read-only, and an empty /box; leave the old root."""
    call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)
    size = f"size={settings['disk_mb']}m,nr_inodes=2000,mode=755".encode()
    sources = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in settings["paths"]]
    call("mount", b"tmpfs", ROOT, b"tmpfs", NO_SUID | NO_DEVICES, b"size=1m,mode=755")
    for path, descriptor in sources:
        target = ROOT + path.encode()
        os.makedirs(target, exist_ok=True)
        call("mount", f"/proc/self/fd/{descriptor}".encode(), target, None, BIND | RECURSIVE, None)
        attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
        call("syscall", MOUNT_SETATTR, -100, target, 0x8000, attributes, ctypes.sizeof(attributes))
        os.close(descriptor)
    os.mkdir(ROOT + b"/box")
    call("mount", b"tmpfs", ROOT + b"/box", b"tmpfs", NO_SUID | NO_DEVICES, size)
    os.mkdir(ROOT + b"/old")
    os.chdir(ROOT)
    call("syscall", PIVOT_ROOT, b".", b"old")
    call("umount2", b"/old", DETACH)
    os.rmdir("/old")
    for name, text in settings["files"].items():
        os.makedirs(os.path.dirname(f"/box/{name}"), exist_ok=True)
        with open(f"/box/{name}", "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    call("mount", b"none", b"/", None, 32 | BIND | READ_ONLY | NO_SUID | NO_DEVICES, None)  # 32: remount
    os.chdir("/box")


def give_up_rights(settings: dict[str, Any], stranger: int) -> None:
    """Drop all rights and set limits. `stranger`: id of the user to become if root started us, else 0."""
    limits = {
        resource.RLIMIT_CPU: settings["cpu_seconds"],
        resource.RLIMIT_AS: settings["mb"] * 2**20,
        resource.RLIMIT_FSIZE: settings["disk_mb"] * 2**20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: settings["processes"],
    }
    for capability in range(64):
        libc.prctl(DROP_BOUND, capability, 0, 0, 0)
    if stranger:
        os.chown("/box", stranger, stranger)
        os.setgroups([])
        os.setresgid(stranger, stranger, stranger)
        os.setresuid(stranger, stranger, stranger)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def serve(settings: dict[str, Any], command: list[str], stranger: int) -> NoReturn:
    """Run as the first process of the namespace: start the command as the second, and end with it."""
    call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    make_root(settings)
    child = os.fork()
    if child == 0:
        try:
            give_up_rights(settings, stranger)
            os.execve(command[0], command, {})
        except BaseException as error:
            fail(error)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(min(124, os.waitstatus_to_exitcode(status) % 256))


def fail(error: BaseException) -> NoReturn:
    """Write the reason why there is no sandbox to standard error, and end with status 125."""
    os.write(2, f"no sandbox: {error}".encode())
    os._exit(125)


def main() -> None:
    """Read the arguments, and confine the command."""
    settings = json.loads(sys.argv[1])
    try:
        call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        # Each sandbox gets its own user, so that the kernel counts its processes apart. Root itself has no limit.
        stranger = 0 if os.getuid() else 2_000_000_000 + os.getpid()
        enter()
        first = os.fork()
        if first == 0:
            try:
                serve(settings, sys.argv[2:], stranger)
            except BaseException as error:
                fail(error)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) % 256)
    except OSError as error:
        fail(error)


if __name__ == "__main__":
    main()
