"""A user's Python function as a judge."""

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from actors.errors import RunError, UsageError
from actors.judges.config import FunctionJudgeConfig
from actors.judges.threads import in_daemon_thread
from actors.preferences import Table, antisymmetric, check_preferences, mean_win_probabilities
from actors.records import Group, Judgement


def load_function(path: str) -> Callable[..., Any]:
    """Import the callable at `package.module:function`.

    Raises UsageError if the path is malformed, the module cannot be imported, or it has no such callable.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UsageError(f"judging.judge.path '{path}' is not an import path; write it as 'package.module:function'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"judging.judge.path '{path}': module '{module_name}' cannot be imported where the judge runs: {error}; "
            "install it there or put it in the working directory of the run"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"judging.judge.path '{path}': '{module_name}' has no function '{name}'; it has: {found}")
    return function


class FunctionJudge:
    """Calls the function once per group: a plain function in a thread, an async one in the event loop."""

    def __init__(self, config: FunctionJudgeConfig) -> None:
        self._path = config.path
        self._function = load_function(config.path)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Judge the groups one after another. The function's own errors pass through.

        Raises RunError if an answer is neither one finite number per completion nor a preference table.
        """
        return [self._read(group, await self._call(group)) for group in groups]

    async def _call(self, group: Group) -> Any:
        prompt, completions = group.lease.prompt, group.completions
        if inspect.iscoroutinefunction(self._function):
            return await self._function(prompt, completions)
        answer = await in_daemon_thread(lambda: self._function(prompt, completions))
        return await answer if inspect.isawaitable(answer) else answer

    def _read(self, group: Group, answer: Any) -> Judgement:
        n, prompt_id = len(group.completions), group.lease.prompt.id
        scores = _numbers(answer, n)
        if scores is not None and all(map(math.isfinite, scores)):
            return Judgement(scores=scores)
        table = _table(answer, n, prompt_id)
        if table is None:
            raise RunError(
                f"judge function '{self._path}' answered {answer!r:.200} for prompt '{prompt_id}'; it must return {n} "
                f"finite numbers, one per completion, or {n} rows of {n} probabilities, [i][j] that i is preferred to "
                "j, with [i][j] + [j][i] = 1"
            )
        return Judgement(scores=mean_win_probabilities(table), preferences=table)


def _numbers(answer: Any, count: int) -> tuple[float, ...] | None:
    """Read `answer` as `count` numbers, finite or not; return None if it is anything else."""
    numbers = tuple(map(_plain, answer)) if hasattr(answer, "__iter__") else ()
    if len(numbers) != count or not all(isinstance(number, Real) for number in numbers):
        return None
    return tuple(float(number) for number in numbers)


def _table(answer: Any, count: int, prompt_id: str) -> Table | None:
    """Read `answer` as a preference table [count][count]; return None if it is anything else."""
    rows = [_numbers(row, count) or () for row in answer] if hasattr(answer, "__iter__") else []
    try:
        check_preferences(rows, count, prompt_id)
    except RunError:
        return None
    return antisymmetric(rows)


def _plain(score: Any) -> Any:
    """Unwrap a one-element array or tensor; return None for a larger one, and anything else unchanged."""
    try:
        return score.item() if hasattr(score, "item") else score
    except (ValueError, RuntimeError):  # raised by arrays and by tensors
        return None
