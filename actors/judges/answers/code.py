"""Judge programs: run the last code block of a completion on the prompt's tests, in a sandbox.

Tests are statements, such as `assert f(1) == 2`, or inputs with the outputs that a program must print for them.
`actors/judges/sandbox` hides the tests from the program, and protects this machine from the program.
"""

import ast
import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import UsageError
from actors.judges.answers.config import CodeJudgeConfig
from actors.judges.sandbox.process import Limits, check_sandbox, run_program, run_tests
from actors.records import Group, Judgement, Prompt

_BLOCK = re.compile(r"```([^\n`]{0,40})\n(.*?)```", re.DOTALL)
_LANGUAGES = ("", "py", "python", "python3")
LONGEST_PROGRAM = 50_000  # characters
MOST_TESTS = 1000


@dataclass(frozen=True, slots=True)
class Checks:
    """Tests of one prompt: statements after a common setup, or cases of input and output."""

    statements: tuple[str, ...] = ()
    setup: str = ""
    cases: tuple[tuple[str, str], ...] = ()


class CodeJudge:
    """Scores the share of the tests that a completion's program passes, or 1 if it passes all."""

    def __init__(self, config: CodeJudgeConfig) -> None:
        """Take the settings. Raises UsageError if programs cannot be confined on this machine."""
        check_sandbox()
        self._all = config.score == "all"
        self._limits = Limits(config.time_limit_seconds, config.memory_mb, config.processes, config.disk_mb)
        self._turns = asyncio.Semaphore(config.max_concurrent_programs)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Run every completion's program. Raises UsageError if a prompt has no readable tests."""
        tests = [read_tests(group.lease.prompt) for group in groups]
        async with asyncio.TaskGroup() as tasks:
            scores = [
                [tasks.create_task(self._score(completion.text, test)) for completion in group.completions]
                for group, test in zip(groups, tests, strict=True)
            ]
        return [Judgement(tuple(task.result() for task in each)) for each in scores]

    async def _score(self, text: str, tests: Checks) -> float:
        program = last_block(text)
        if program is None or len(program) > LONGEST_PROGRAM:
            return 0.0
        async with self._turns:
            passed = await self._passed(program, tests)
        share = passed / (len(tests.statements) + len(tests.cases))
        return float(share == 1.0) if self._all else share

    async def _passed(self, program: str, tests: Checks) -> int:
        if tests.statements:
            return await run_tests(program, tests.statements, tests.setup, self._limits)
        passed, end = 0, time.monotonic() + self._limits.seconds
        for given, wanted in tests.cases:
            limits = replace(self._limits, seconds=end - time.monotonic())
            if limits.seconds <= 0:
                break
            printed = await run_program(program, given, limits)
            passed += printed is not None and same_output(printed, wanted)
        return passed


def last_block(text: str) -> str | None:
    """Return the last closed code block that is marked as Python or as no language; None without one."""
    blocks = [block for language, block in _BLOCK.findall(text) if language.strip().lower() in _LANGUAGES]
    return blocks[-1].removesuffix("\n") if blocks else None


def same_output(printed: str, wanted: str) -> bool:
    """Compare line by line, without spaces at the end of lines and empty lines at the end."""
    one, other = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (printed, wanted))
    return one == other


def read_tests(prompt: Prompt) -> Checks:
    """Read a prompt's tests. Raises UsageError, naming the forms, if tests are missing or have another form."""
    given = prompt.metadata.get("answer", prompt.answer)
    try:
        tests = _read(_unpacked(given))
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError):
        tests = Checks()
    if not all("assert" in each for each in tests.statements):  # any program would pass `72`
        tests = Checks()
    if not 0 < len(tests.statements) + len(tests.cases) <= MOST_TESTS:
        raise UsageError(
            f"prompt '{prompt.id}' has no tests that the judge 'code' can read (got {given!r:.100}), or more than "
            f"{MOST_TESTS}; set prompts.answer_field to a column of asserts (a text or a list), of cases "
            '[{"input": ..., "output": ...}], or to the columns [test, entry_point]'
        )
    return tests


def _unpacked(given: Any) -> Any:
    """Decode JSON text, and unwrap the value of a single column."""
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):
        given = json.loads(given)
    if isinstance(given, Mapping) and len(given) == 1:
        return _unpacked(next(iter(given.values())))
    return given


def _read(given: Any) -> Checks:
    if isinstance(given, str):
        return _statements(given)
    if isinstance(given, Mapping):
        if "inputs" in given:
            inputs, outputs = given["inputs"], given["outputs"]
            return Checks(cases=tuple((_text(a), _text(b)) for a, b in zip(inputs, outputs, strict=True)))
        if "entry_point" in given:
            return Checks((f"{given['test']}\ncheck({given['entry_point']})\n",))
        listed = given[next((name for name in ("test_list", "tests", "test") if name in given), "test")]
        setup = given.get("test_setup_code") or "\n".join(given.get("test_imports") or ())
        return replace(_read(listed), setup=str(setup))
    if all(isinstance(each, str) for each in given):
        return Checks(tuple(given))
    return Checks(cases=tuple((_text(each["input"]), _text(each["output"])) for each in given))


def _text(value: Any) -> str:
    """Return a case's input or output as text; a list holds its lines."""
    return value if isinstance(value, str) else "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _statements(source: str) -> Checks:
    """Make a test of each top-level assert; all other code is their common setup."""
    body = ast.parse(source).body
    asserts = [ast.unparse(node) for node in body if isinstance(node, ast.Assert)]
    rest = "\n".join(ast.unparse(node) for node in body if not isinstance(node, ast.Assert))
    return Checks(tuple(asserts), rest) if asserts else Checks((source,))
