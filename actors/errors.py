"""Errors that users can cause or must see. Each message names the event, the value, the limit and the next step."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM


class OffbeatError(Exception):
    """Base of Offbeat's own errors. A run that ends with one exits with code 1 and its message, no traceback."""

    exit_code = 1


class UsageError(OffbeatError):
    """The request is wrong: configuration, paths, data. Exit code 2, before anything starts."""

    exit_code = 2


class RunError(OffbeatError):
    """The run cannot continue: an actor failed for good, a device is full, training diverged. Exit code 1."""


class WeightMismatchError(RunError):
    """Published weights differ from their manifest, or engine and learner disagree on the canary's log-probs."""


class EngineStartError(RunError):
    """An engine that has worked does not start again. `process` identifies the process in which the start failed."""

    def __init__(self, message: str, process: str) -> None:
        super().__init__(message, process)
        self.process = process

    def __str__(self) -> str:
        return str(self.args[0])


class TransferInterruptedError(OffbeatError):
    """A transfer of weights ended early because another generator failed. The weights in use are unchanged."""


LOG_IS = "; its log is "


def logged(text: str) -> str:
    """Append the place of this process's log to an error text."""
    try:
        log = os.readlink("/proc/self/fd/2")
    except OSError:
        log = ""
    if not os.path.isfile(log):  # a terminal, a pipe
        log = f"{ray_logs()}/worker-*-{os.getpid()}.err"
    return f"{text}{LOG_IS}{log} on {socket.gethostname()}"


def ray_logs() -> str:
    """Return the directory of the logs of this host's newest Ray."""
    return f"{os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or '/tmp'}/ray/session_latest/logs"


LEARNER_MEMORY = (
    "lower learner.micro_batch_tokens, set learner.gradient_checkpointing=true, raise learner.zero_stage with more "
    "learner.ranks, or learner.sequence_parallel if one prompt's completions are too long"
)
ENGINE_MEMORY = (
    "lower generators.gpu_memory_utilization if the GPU is shared, generators.max_model_len or "
    "generators.max_running_prompts, or raise generators.tensor_parallel_size"
)
REFERENCE_MEMORY = "lower reference.micro_batch_tokens, or give the reference actor its own GPU"
JUDGE_MEMORY = "lower judging.judge.batch_tokens, set its dtype to bfloat16, or give the judge its own GPU"


_SURROUNDINGS = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there or have the quota raised",
    errno.EROFS: "make that file system writable again",
    errno.EIO: "look in `dmesg` for what is wrong with that disk",
    errno.EMFILE: "let a process open more files (`ulimit -n`)",
    errno.ENFILE: "let this host open more files (`sysctl fs.file-max`)",
}
"""Remedies for faults of the machine, by error number."""
_OF_PATHS = {
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.ENOENT: "put back the directory, which is gone",
    errno.EEXIST: "a file has the name of a directory on the way: use another directory",
    errno.ENOTDIR: "a file has the name of a directory on the way: use another directory",
}
_MOST_CAUSES = 10


def remedy_of(error: BaseException) -> str | None:
    """Return the remedy for a full disk or another fault of the machine; None for any other error."""
    return _SURROUNDINGS.get(_number(error))


def writing_remedy(error: BaseException) -> str:
    """Return the remedy for any error of writing."""
    name = getattr(system_error(error), "filename", None)
    if _number(error) == errno.ENOENT and isinstance(name, str) and os.path.isdir(os.path.dirname(name) or os.curdir):
        return "the system makes no files there, as below /proc: use another directory"
    return (_SURROUNDINGS | _OF_PATHS).get(_number(error), "make it writable")


def system_error(error: BaseException) -> BaseException:
    """Return the system's error that `error` was raised from; `error` itself if there is none.

    Libraries that write in C++ report the last symptom: on a full disk torch reports a position in the file.
    """
    found = (each for each in _chain(error) if isinstance(each, OSError) and each.errno is not None)
    return next(found, error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the errors that it was raised from."""
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield error
        remote = getattr(error, "cause", None)  # Ray's name for what a task raised
        context = None if error.__suppress_context__ else error.__context__
        error = remote if isinstance(remote, BaseException) else error.__cause__ or context


def _number(error: BaseException) -> int:
    """Return the system's error number that an error or one of its causes has or quotes; 0 without one."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None:
            return each.errno
        # Arrow, torch and libraries in Rust raise errors of their own that quote the system's text.
        for number in _SURROUNDINGS:
            if os.strerror(number) in str(each):
                return number
    return 0


@contextmanager
def writing(what: str | Path, then: str, *also: type[Exception]) -> Iterator[None]:
    """Turn an error of the system, or of the types in `also`, into a RunError with `what` and the remedy.

    `then` says how to go on after the remedy: "then use --resume", "or choose another directory".
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except Exception as error:
        if isinstance(error, OffbeatError) or (not isinstance(error, kinds) and remedy_of(error) is None):
            raise
        first = system_error(error)
        cause = getattr(first, "strerror", None) or first
        raise RunError(f"cannot write {what}: {cause}; {writing_remedy(error)}, {then}") from error


@contextmanager
def surroundings(then: str) -> Iterator[None]:
    """Turn an error that a full disk or another fault of the machine caused into a RunError with the remedy.

    For unexpected errors; use `writing` if the written file is known. `then` says how to go on.
    """
    try:
        yield
    except Exception as error:
        remedy = remedy_of(error)
        if remedy is None or isinstance(error, OffbeatError):
            raise
        first = system_error(error)
        where, cause = getattr(first, "filename", None), getattr(first, "strerror", None) or first
        raise RunError(f"{cause if where is None else f'{where}: {cause}'}; {remedy}, {then}") from error


@contextmanager
def oom_hint(who: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation, on a GPU or in host memory, into a RunError that ends with `remedy`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's errors are RuntimeErrors; no torch is imported here
        if not _no_memory(error):
            raise
        first = next(iter(str(error).splitlines()), "")
        raise RunError(f"{who} ran out of memory: {first}; {remedy}") from error


def _no_memory(error: Exception) -> bool:
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
