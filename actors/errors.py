"""Errors that users can cause or must see. Each says what happened, the value, the limit and the next step."""

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
    """An engine that has worked does not start again. `process` identifies the process in which it failed."""

    def __init__(self, message: str, process: str) -> None:
        super().__init__(message, process)
        self.process = process

    def __str__(self) -> str:
        return str(self.args[0])


class TransferInterruptedError(OffbeatError):
    """A transfer of weights ended early because another generator failed. The weights in use are unchanged."""


LEARNER_MEMORY = (
    "lower learner.micro_batch_tokens, set learner.gradient_checkpointing=true, or raise learner.zero_stage with more "
    "learner.ranks"
)
ENGINE_MEMORY = (
    "lower generators.gpu_memory_utilization if the GPU is shared, generators.max_model_len or "
    "generators.max_running_prompts, or raise generators.tensor_parallel_size"
)
JUDGE_MEMORY = "lower judging.judge.batch_tokens, set its dtype to bfloat16, or give the judge its own GPU"


@contextmanager
def writing(what: str | Path, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """Turn an OSError, or an error of the types in `also`, into a RunError that names `what` and the remedy."""
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        cause = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {what}: {cause}; {remedy}") from error


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
