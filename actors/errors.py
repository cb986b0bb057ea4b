"""Errors for users. Each message gives what happened, the value, the limit and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OffbeatError(Exception):
    """Base of Offbeat's errors. Ends a run with code 1 and the message, without a traceback."""

    exit_code = 1


class UsageError(OffbeatError):
    """The request is wrong: configuration, paths or data. Raised before anything starts; exit code 2."""

    exit_code = 2


class RunError(OffbeatError):
    """The run cannot continue: an actor failed for good, memory ran out, or training diverged. Exit code 1."""


class WeightMismatchError(RunError):
    """Published weights differ from their manifest, or engine and learner disagree on the canary's log-probs."""


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
def oom_hint(who: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation, on a GPU or the host, into a RunError: `who` ran out of memory, and the `remedy`."""
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
