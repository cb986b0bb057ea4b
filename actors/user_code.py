"""Import users' Python code by path, and report its errors with file and line, from the user's own file on."""

import importlib
import inspect
import os
import sys
import traceback
from difflib import get_close_matches
from typing import Any

from actors.errors import RunError, UsageError

LONGEST_MESSAGE = 300  # characters of a user's error
MOST_NAMES = 8  # of a module's callables that a message lists


class UserCodeError(RunError):
    """A user's code raised. The message is one line; `trace` is the traceback from the user's file on."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


def load_named(setting: str, path: str, example: str) -> Any:
    """Import the callable that `path` names. `example`: the form for messages, such as `package.module:function`.

    Raises UsageError if the path is malformed, or its module cannot be imported or holds no callable of that name.
    """
    module_name, _, name = path.partition(":")
    of_file = module_name.endswith(".py") and not os.path.isdir(module_name.removesuffix(".py"))
    if of_file or not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UsageError(f"{setting} '{path}' is not an import path; write it as '{example}'{_meant(path)}")
    try:
        module = importlib.import_module(module_name)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a module may raise SystemExit
        missing = isinstance(error, ModuleNotFoundError)
        said = str(error) if missing else str(raised(f"module '{module_name}'", error))
        raise UsageError(
            f"{setting} '{path}': module '{module_name}' cannot be imported where it is needed: {said}; "
            + ("install it there or put it in the working directory of the run" if missing else _correction(error))
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if len(known) > MOST_NAMES:
            some = get_close_matches(name, known) or known[:MOST_NAMES]
            known = [*some, f"and {len(known) - len(some)} more"]
        its = f" ({name} is of type {type(found).__name__})" if hasattr(module, name) else ""
        one = f"name one that it has: {', '.join(known)}" if known else "define it there"
        raise UsageError(f"{setting} '{path}': '{module_name}' has no function '{name}'{its}; {one}")
    return found


def _correction(error: BaseException) -> str:
    """Return the remedy for an error of a module's import."""
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "the module is in no package: import what is beside it by its name alone, without the dot"
    return "correct the module"


def _meant(path: str) -> str:
    """Return the end of an error: the import path meant by `path`, a file or a dotted name. Empty if unclear."""
    file, colon, name = path.rpartition(":")
    if not colon:
        file, name = path.removesuffix(".py"), "function"
        if "/" not in file and "." in file:
            file, _, name = file.rpartition(".")
    parts = os.path.normpath(file.removesuffix(".py")).split("/")
    if name.isidentifier() and all(part.isidentifier() for part in ".".join(parts).split(".")):
        return f", as {'.'.join(parts)}:{name}"
    if file and name.isidentifier() and ":" not in file:
        return "; a module's name has letters, digits and underscores alone, no digit first: rename the file"
    return ""


def place_of(function: Any) -> str:
    """Return file and line of a callable's definition, or only the file if Python does not know the line."""
    function = inspect.unwrap(getattr(function, "func", function))  # of a functools.partial
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is not None:
        return f"{_short(code.co_filename)}:{code.co_firstlineno}"
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return _short(getattr(module, "__file__", None) or "a module without a file")


def raised(who: str, error: BaseException, *machinery: str) -> UserCodeError:
    """Describe an error of a user's code. Leaves out frames up to the last one in a file of `machinery`."""
    frames = traceback.extract_tb(error.__traceback__)
    hidden = {__file__, importlib.__file__, *machinery}
    ours = [number for number, frame in enumerate(frames) if frame.filename in hidden or _imports(frame.filename)]
    frames = traceback.StackSummary.from_list(frames[max(ours, default=-1) + 1 :])
    place = ""
    if frames:
        at = [frame for frame in frames if frame.filename == frames[0].filename][-1]
        place = f" ({_short(at.filename)}:{at.lineno}, in {at.name}: {(at.line or '').strip()})"
    text = _message(error)
    return UserCodeError(f"{who} raised {text}{place}", "".join(traceback.format_list(frames)) + text)


def _message(error: BaseException, deepest: int = 3) -> str:
    """Return type and text of an error, and of the errors that it was raised from or holds."""
    try:
        text = str(error)
    except BaseException:  # of a class of the user's
        text = "(its message cannot be read)"
    name = type(error).__name__
    said = _cut(f"{name}: {text}" if text else name)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if deepest and isinstance(error, BaseExceptionGroup):
        said += f" [{_cut('; '.join(_message(each, deepest - 1) for each in error.exceptions))}]"
    return f"{said}, from {_message(cause, deepest - 1)}" if deepest and cause is not None else said


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."


def _imports(filename: str) -> bool:
    return filename.startswith("<frozen importlib")


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith(os.pardir) else relative
