"""Run trusted tests on a program that runs elsewhere: `tester.py TESTS`. Runs in a sandbox too.

TESTS is a JSON file {"tests": [source, ...], "setup": source}. Calls of the program's functions go to standard output,
and their answers come from standard input; the number of each passed test goes to standard error. A name in a test is
its own, else Python's, else a module of the standard library, and only then the program's: so a program cannot replace
`abs` or `math`.
"""

import builtins
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from actors.judges.sandbox.solution import decode, encode


class FailedError(Exception):
    """The program raised an exception that is not one of Python's own."""


Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Remote:
    """An object of the program."""

    __slots__ = ("_ask", "_target")

    def __init__(self, ask: Ask, target: dict[str, Any]) -> None:
        self._ask, self._target = ask, target

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        kept: list[Any] = []
        request = {"arguments": _plain(list(arguments), kept), "keywords": _plain(keywords, kept)}
        reply = self._ask(self._target | {"do": "call"} | request)
        for before, after in zip(arguments, _value(reply["arguments"], self._ask), strict=False):
            _update(before, after)
        return _value(reply["value"], self._ask)

    def __getattr__(self, name: str) -> Any:
        return _value(self._ask(self._target | {"do": "attribute", "attribute": name})["value"], self._ask)

    def __iter__(self) -> Any:
        return iter(_value(self._ask(self._target | {"do": "items"})["value"], self._ask))


def _plain(value: Any, kept: list[Any]) -> Any:
    written = encode(value, kept)
    if kept:
        raise TypeError(f"{type(kept[0]).__name__} cannot be passed to the program; only data can")
    return written


def _value(written: Any, ask: Ask) -> Any:
    if isinstance(written, dict) and list(written) == ["kept"]:
        return Remote(ask, {"kept": int(written["kept"])})
    return decode(written, _Remotes(ask))


class _Remotes:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def __getitem__(self, number: Any) -> Remote:
        return Remote(self._ask, {"kept": int(number)})


def _update(before: Any, after: Any) -> None:
    """Copy the content that the program left in its copy of a list, dict or set back into `before`."""
    if type(before) is type(after) is list:
        before[:] = after
    elif type(before) is type(after) and isinstance(before, (dict, set)):
        before.clear()
        before.update(after)


class Names(dict[str, Any]):
    """Names that a test can use."""

    def __init__(self, ask: Ask, offered: set[str]) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self._ask, self._offered = ask, offered

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in sys.stdlib_module_names:
            return importlib.import_module(name)
        if name in self._offered:
            return _value(self._ask({"name": name, "do": "get"})["value"], self._ask)
        raise NameError(f"name '{name}' is not defined")


def main() -> None:
    """Run each test; a test passes if it ends without an exception."""
    with open(sys.argv[1], encoding="utf-8") as file:
        tests = json.load(file)
    requests, replies, verdicts = sys.stdout, sys.stdin, sys.stderr
    sys.stdout = sys.stderr = open("/box/output", "w")  # noqa: SIM115 - until the end of the process

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return read()

    def read() -> dict[str, Any]:
        line = replies.readline()
        if not line:
            raise EOFError("the program has ended")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), FailedError)
            ordinary = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if ordinary else FailedError)(str(reply.get("text", "")))
        return reply

    offered = set(decode(read()["value"], []))
    setup = Names(ask, offered)
    exec(compile(tests["setup"], "setup", "exec"), setup)
    for number, test in enumerate(tests["tests"]):
        names = Names(ask, offered)
        names.update(setup)
        try:
            exec(compile(test, f"test {number}", "exec"), names)
        except BaseException:
            continue
        verdicts.write(f"{number}\n")
        verdicts.flush()


if __name__ == "__main__":
    main()
