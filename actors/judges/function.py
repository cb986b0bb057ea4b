"""A user's Python function as a judge. It must not know what the function does."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from actors.errors import RunError, UsageError
from actors.judges.config import FunctionJudgeConfig
from actors.judges.threads import in_daemon_thread
from actors.records import Group, Judgement
from actors.replay_buffer.pairing import checked_preferences, mean_win_probabilities


def load_function(path: str) -> Callable[..., Any]:
    """The callable at `package.module:function`.

    Raises:
        UsageError: malformed path, module that cannot be imported, or no such callable.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UsageError(f"judge.path '{path}' is no import path; write it as 'package.module:function'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"judge.path '{path}': module '{module_name}' cannot be imported where the judge runs: {error}; "
            "install it there or put it in the working directory of the run"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"judge.path '{path}': module '{module_name}' has no function '{name}'; it has: {functions}")
    return function


class FunctionJudge:
    """Calls the function once per group. A plain function runs in a thread, an async one in the event loop."""

    def __init__(self, config: FunctionJudgeConfig) -> None:
        self._path = config.path
        self._function = load_function(config.path)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One call per group, one after another.

        Raises:
            RunError: an answer is neither one finite number per completion nor a table of preferences. The function's
                own errors pass through.
        """
        return [self._checked(group, await self._call(group)) for group in groups]

    async def _call(self, group: Group) -> Any:
        prompt, completions = group.lease.prompt, group.completions
        if inspect.iscoroutinefunction(self._function):
            return await self._function(prompt, completions)
        answer = await in_daemon_thread(lambda: self._function(prompt, completions))
        return await answer if inspect.isawaitable(answer) else answer

    def _checked(self, group: Group, answer: Any) -> Judgement:
        expected = len(group.completions)
        scores = _numbers(answer, expected)
        if scores is not None and all(map(math.isfinite, scores)):
            return Judgement(scores=scores)
        table = _table(answer, expected, group.lease.index)
        if table is None:
            raise RunError(
                f"judge function '{self._path}' answered {answer!r:.200} for prompt '{group.lease.prompt.id}'; it must "
                f"return {expected} finite numbers, one per completion, or {expected} rows of {expected} "
                "probabilities, [i][j] that i is preferred to j, with [i][j] + [j][i] = 1"
            )
        return Judgement(scores=mean_win_probabilities(table), preferences=table)


def _numbers(answer: Any, count: int) -> tuple[float, ...] | None:
    """`answer` as `count` numbers, finite or not; None when it is anything else."""
    numbers = tuple(map(_plain, answer)) if hasattr(answer, "__iter__") else ()
    if len(numbers) != count or not all(isinstance(number, Real) for number in numbers):
        return None
    return tuple(float(number) for number in numbers)


def _table(answer: Any, count: int, lease_index: int) -> tuple[tuple[float, ...], ...] | None:
    """`answer` as a table of preferences [count][count]; None when it is anything that no game can be made of."""
    rows = [_numbers(row, count) for row in answer] if hasattr(answer, "__iter__") else []
    try:
        return checked_preferences([row or () for row in rows], count, lease_index)
    except RunError:
        return None


def _plain(score: Any) -> Any:
    """The Python number in a one-element array or tensor, None for a larger one; anything else as it is."""
    try:
        return score.item() if hasattr(score, "item") else score
    except (ValueError, RuntimeError):  # of arrays and of tensors
        return None
