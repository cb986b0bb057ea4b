"""Errors that a user can cause or must hear of. Each says what was given, what is allowed and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OffbeatError(Exception):
    """Base of Offbeat's own errors. A run that ends with one exits with code 1 and its message, no traceback."""

    exit_code = 1


class UsageError(OffbeatError):
    """The request itself is wrong: configuration, paths, data. Exit code 2, before anything was started."""

    exit_code = 2


class RunError(OffbeatError):
    """The run could not go on: an actor failed for good, a device is full, training diverged. Exit code 1."""


class WeightMismatchError(RunError):
    """A publication does not hold what its manifest says, or an engine does not compute what the learner computes."""


LEARNER_MEMORY = (
    "lower learner.micro_batch_tokens, set learner.gradient_checkpointing=true, or raise learner.zero_stage with more "
    "learner.ranks"
)
ENGINE_MEMORY = (
    "lower generators.gpu_memory_utilization where others share the GPU, generators.max_model_len or "
    "max_running_prompts, or raise generators.tensor_parallel_size"
)
JUDGE_MEMORY = "lower judging.judge.batch_tokens, set its dtype to bfloat16, or give it a GPU of its own"


@contextmanager
def saying_what_to_lower(who: str, remedy: str) -> Iterator[None]:
    """Within it, an allocation that fails, on a GPU or in host memory, becomes a RunError that ends with `remedy`."""
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
