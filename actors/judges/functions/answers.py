"""Read the answer of a user's function as a judgement. Runs in the function's process."""

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

from actors.errors import RunError
from actors.preferences import Table, antisymmetric, check_preferences, mean_win_probabilities
from actors.records import Judgement


def read_answer(path: str, answer: Any, n: int, *, lists: bool) -> Judgement:
    """Read the answer of the function at `path` for `n` completions. `lists`: True if it has TRL's signature.

    Raises RunError if the answer is neither one finite number per completion nor, without `lists`, a preference table.
    """
    scores = _numbers(_without_none(answer) if lists else answer, n)
    if scores is not None and all(map(math.isfinite, scores)):
        return Judgement(scores=scores)
    table = None if lists else _table(answer, n)
    if table is None:
        tables = f", or {n} rows of {n} probabilities, [i][j] that i is preferred to j, with [i][j] + [j][i] = 1"
        raise RunError(
            f"judge function '{path}' answered {described(answer)}; it must return a list, tuple, array or "
            f"tensor of {n} finite numbers, one per completion{'' if lists else tables}"
        )
    return Judgement(scores=mean_win_probabilities(table), preferences=table)


def described(answer: Any) -> str:
    """Describe the type of a function's answer, without values, because reasons are counted by their text."""
    if answer is None:
        return "None"
    kind = type(answer).__name__
    shape = getattr(answer, "shape", None)
    if shape is not None and hasattr(answer, "reshape"):
        return f"{kind} of shape {list(shape)}{' with NaN or infinity' if _not_finite(answer.reshape(-1)) else ''}"
    if not isinstance(answer, list | tuple):
        return f"one {kind}"
    kinds = ", ".join(dict.fromkeys(type(item).__name__ for item in answer[:100]))
    return f"{kind} of {len(answer)} ({kinds}{', with NaN or infinity' if _not_finite(answer) else ''})"


def _not_finite(values: Any) -> bool:
    """Return whether one of `values` is NaN, infinite, or an integer beyond floats."""
    return any(isinstance(value, float | int) and not abs(value) <= sys.float_info.max for value in map(_plain, values))


def _items(answer: Any) -> Sequence[Any] | None:
    """Return the items of a list, tuple, array or tensor, else None. (Sets have no order, and keys are no scores.)"""
    if isinstance(answer, list | tuple):
        return answer
    is_array = hasattr(answer, "tolist") and len(getattr(answer, "shape", ())) > 0
    return list(answer) if is_array and not isinstance(answer, memoryview) else None


def _without_none(answer: Any) -> Any:
    """Replace each None by the mean of the other scores: TRL's functions return None for a completion without score."""
    items = _items(answer)
    if items is None or all(item is None for item in items):
        return answer
    known = [item for item in items if item is not None]
    if len(known) == len(items) or not all(isinstance(_plain(item), Real) for item in known):
        return answer
    mean = sum(float(_plain(item)) for item in known) / len(known)
    return [mean if item is None else item for item in items]


def _numbers(answer: Any, count: int) -> tuple[float, ...] | None:
    """Read `answer` as `count` numbers, finite or not; return None for anything else."""
    numbers = tuple(map(_plain, _items(answer) or ()))
    if len(numbers) != count or not all(isinstance(number, Real) for number in numbers):
        return None
    try:
        return tuple(float(number) for number in numbers)
    except OverflowError:  # an integer beyond floats
        return None


def _table(answer: Any, count: int) -> Table | None:
    """Read `answer` as a preference table [count][count]; return None for anything else."""
    rows = [_numbers(row, count) or () for row in _items(answer) or ()]
    try:
        check_preferences(rows, count)
    except RunError:
        return None
    return antisymmetric(rows)


def _plain(score: Any) -> Any:
    """Unwrap a one-element array or tensor; None if it is larger or masked. Return any other value unchanged."""
    try:
        if getattr(score, "mask", False):  # numpy's masked value, which reads as 0
            return None
        return score.item() if hasattr(score, "item") else score
    except (ValueError, RuntimeError):  # raised by arrays and by tensors
        return None
