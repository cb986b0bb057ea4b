"""Call a user's function with its signature: Offbeat's, or that of TRL's reward functions."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from actors.errors import UsageError
from actors.records import Completion, Prompt
from actors.user_code import load_named

RECORDS, LISTS = "f(prompt, completions)", "f(prompts, completions, **columns)"
FORMS = f"{RECORDS}, with Offbeat's records, or {LISTS} as TRL's reward functions, with lists"
_BY_TRL = ("prompts", "completions", "completion_ids")


def load_function(path: str) -> Callable[..., Any]:
    """Import the callable at `package.module:function`. Raises UsageError as `load_named`."""
    return load_named("judging.judge.path", path, "package.module:function")


class Signature:
    """The arguments that one function is called with."""

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        """Find the signature. Raises UsageError if the function at `path` has neither."""
        self._path = path
        self.lists = takes_lists(function, path)
        self._parameters = inspect.signature(function).parameters if self.lists else {}

    def arguments(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and named arguments. Raises UsageError if the function names a column that is not read."""
        if not self.lists:
            return (prompt, completions), {}
        given = trl_arguments(prompt, completions)
        parameters = self._parameters
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            given = {name: value for name, value in given.items() if name in parameters}
        missing = [name for name, each in parameters.items() if _is_required(each) and name not in given]
        if missing:
            columns = [name for name in given if name not in _BY_TRL]
            raise UsageError(
                f"judge function '{self._path}' needs {missing}, and the prompts have the columns {columns}; name the "
                f"columns of the data in prompts.columns, as in prompts.columns={missing}"
            )
        return (), given


def takes_lists(function: Callable[..., Any], path: str) -> bool:
    """Return whether `function` has the signature of TRL's reward functions, by its parameters' names.

    Raises UsageError if it has neither signature.
    """
    if inspect.isclass(function):
        raise UsageError(
            f"judging.judge.path '{path}' is a class; name a function, or an object whose class defines __call__ as "
            f"{RECORDS}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C
        return False
    names = list(signature.parameters)
    swapped = names[:2] == ["completions", "prompt"]
    if not swapped and ("prompts" in names or names[:1] == ["completions"]):
        return True
    if swapped or not _takes_two(signature):
        name = getattr(function, "__name__", type(function).__name__)
        raise UsageError(
            f"judging.judge.path '{path}': {name}{signature} cannot judge; write it as {FORMS}; docs/judges.md has both"
        )
    return False


def _takes_two(signature: inspect.Signature) -> bool:
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def trl_arguments(prompt: Prompt, completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the keyword arguments of a reward function of TRL: lists with one entry per completion.

    Chat prompts and their completions are lists of messages, others strings. `answer` and the columns of
    prompts.columns repeat the prompt's own.
    """
    n, messages = len(completions), prompt.metadata.get("messages")
    texts: list[Any] = [each.text for each in completions]
    if messages is not None:
        said = [each.messages or (("assistant", each.text),) for each in completions]
        texts = [[{"role": role, "content": content} for role, content in each] for each in said]
    columns = {"answer": prompt.answer} if prompt.answer is not None else {}
    columns |= prompt.metadata.get("columns", {})
    return {
        **{name: [value] * n for name, value in columns.items()},
        "prompts": [prompt.text if messages is None else list(messages)] * n,
        "completions": texts,
        "completion_ids": [list(each.token_ids) for each in completions],
    }


def _is_required(parameter: inspect.Parameter) -> bool:
    named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return named and parameter.default is parameter.empty
