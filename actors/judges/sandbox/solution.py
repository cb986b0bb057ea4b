"""Serve calls of a program's functions: `solution.py PROGRAM`. Runs in a sandbox and imports nothing of ours.

Reads one JSON request a line from standard input and answers on standard output: the values of the program's names,
calls, attributes, items. It never sees a test, only the arguments of the call. The tester takes only data from it, so
even a program that takes over this process cannot fake a comparison.
"""

import itertools
import json
import os
import sys
from typing import Any

MOST_ITEMS = 100_000
_CONTAINERS: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


def encode(value: Any, kept: Any) -> Any:
    """Write plain data as JSON; keep any other object here, and send a number for it."""
    if value is None or isinstance(value, (bool, str)):
        return value if type(value) in (type(None), bool, str) else str(value)
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(each, kept) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, kept), encode(each, kept)] for key, each in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    kept.append(value)
    return {"kept": len(kept) - 1}


def decode(value: Any, kept: Any) -> Any:
    """Read what `encode` wrote. Raises TypeError for anything else."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](decode(each, kept) for each in content)
    if kind == "dict":
        return {decode(key, kept): decode(each, kept) for key, each in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    if kind == "kept":
        return kept[content]
    raise TypeError(f"{kind} is no data")


def answer(request: dict[str, Any], names: dict[str, Any], kept: list[Any]) -> dict[str, Any]:
    """Answer a request about an object: its value, an attribute, a call, or its items."""
    target = names[request["name"]] if "name" in request else kept[request["kept"]]
    if request["do"] == "get":
        return {"value": encode(target, kept)}
    if request["do"] == "attribute":
        return {"value": encode(getattr(target, request["attribute"]), kept)}
    if request["do"] == "items":
        return {"value": {"list": [encode(each, kept) for each in itertools.islice(target, MOST_ITEMS)]}}
    arguments, keywords = decode(request["arguments"], kept), decode(request["keywords"], kept)
    result = target(*arguments, **keywords)
    return {"value": encode(result, kept), "arguments": encode(arguments, kept)}


def main() -> None:
    """Run the program, then serve requests. The program's output is dropped."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    empty = os.open("/box/output", os.O_RDWR | os.O_CREAT)
    for descriptor in range(3):
        os.dup2(empty, descriptor)
    sys.setrecursionlimit(5000)
    names: dict[str, Any] = {"__name__": "solution"}
    kept: list[Any] = []
    reply: dict[str, Any]
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            exec(compile(file.read(), "solution.py", "exec"), names)
        reply = {"value": encode([name for name in names if not name.startswith("__")], kept)}
    except BaseException as error:
        reply = {"error": type(error).__name__}
    while True:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        line = requests.readline()
        if not line:
            return
        try:
            reply = answer(json.loads(line), names, kept)
        except BaseException as error:
            reply = {"error": type(error).__name__, "text": str(error)[:200]}


if __name__ == "__main__":
    main()
