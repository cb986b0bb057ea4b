"""Programs on tests: right scores for right and wrong ones, nothing won by cheating, nothing left behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.errors import UsageError
from actors.judges.answers.code import Checks, CodeJudge, last_block, read_tests
from actors.judges.answers.config import CodeJudgeConfig
from actors.judges.sandbox import process
from tests.fakes.generators import make_group

try:
    process.check_sandbox()
except UsageError as error:
    pytestmark = pytest.mark.skip(reason=str(error))

TESTS = ["assert f(1) == 2", "assert f(2) == 3"]
RIGHT = "def f(x):\n    return x + 1"


async def judgement(programs: list[str], tests: Any, **settings: Any) -> tuple[float, ...]:
    group = make_group([f"So:\n```python\n{program}\n```\nDone." for program in programs], answer=str(tests))
    group.lease.prompt.metadata["answer"] = tests  # type: ignore[index]
    limits = {"time_limit_seconds": 5.0, "memory_mb": 256} | settings
    return (await CodeJudge(CodeJudgeConfig(**limits)).judge([group]))[0].scores


def scores(programs: list[str], tests: Any = TESTS, **settings: Any) -> tuple[float, ...]:
    return asyncio.run(judgement(programs, tests, **settings))


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def test_the_score_is_the_share_of_tests_that_pass() -> None:
    programs = [RIGHT, "def f(x):\n    return 2", "def g(x):\n    return x", "def f(x:"]
    assert scores(programs) == (1.0, 0.5, 0.0, 0.0)
    assert scores(programs, score="all") == (1.0, 0.0, 0.0, 0.0)


def test_a_program_reads_its_input_and_what_it_prints_is_compared() -> None:
    cases = [{"input": "1\n", "output": "2\n"}, {"input": "5", "output": "6"}]
    assert scores(["print(int(input()) + 1)", "print(2)", "raise ValueError", ""], cases) == (1.0, 0.5, 0.0, 0.0)


def test_arguments_that_are_changed_classes_generators_and_exceptions_are_tested_as_in_one_process() -> None:
    tests = [
        "a = [3, 1]\nf(a)\nassert a == [1, 3]",
        "assert C(2).double() == (4, {1: {2}}, 1.5)",
        "assert list(g(3)) == [0, 1, 2]",
        "try:\n    h()\nexcept KeyError:\n    pass\nelse:\n    assert False",
    ]
    program = (
        "def f(x):\n    x.sort()\n"
        "class C:\n    def __init__(self, x):\n        self.x = x\n"
        "    def double(self):\n        return (2 * self.x, {1: {2}}, 1.5)\n"
        "def g(n):\n    yield from range(n)\n"
        "def h():\n    raise KeyError(1)\n"
    )
    assert scores([program], tests) == (1.0,)


CHEATS = {
    "ends well before the tests": "import os\nos._exit(0)",
    "ends well in a test": "import os\ndef f(x):\n    os._exit(0)",
    "raises SystemExit": "import sys\ndef f(x):\n    sys.exit(0)",
    "prints verdicts": "import os\nfor n in range(9):\n    os.write(1, b'0\\n1\\n')\n    os.write(2, b'0\\n1\\n')",
    "answers of its own making": "import os\nfor fd in range(3, 20):\n    try:\n"
    "        os.write(fd, b'{\"value\": true}\\n' * 9)\n    except OSError:\n        pass",
    "is equal to everything": "class E:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return E()",
    "replaces Python's names": "import builtins\nbuiltins.AssertionError = Exception\ndef f(x):\n    return 0\n"
    "def __eq__(*_):\n    return True\nclass int:\n    pass",
    "looks for the tests in the frames": "import sys\ndef f(x):\n    frame, found = sys._getframe(), []\n"
    "    while frame:\n        found += [v for v in frame.f_locals.values() if 'assert' in str(v)]\n"
    "        frame = frame.f_back\n    return x + 1 if any('== 2' in str(each) for each in found) else 0",
    "looks for the tests in files": "import os\ndef f(x):\n    names = os.listdir('/box')\n"
    "    return x + 1 if 'tests.json' in names or os.path.exists('/proc/1') or os.path.exists('/etc/passwd') else 0",
    "kills its neighbours": "import os\nfor pid in (-1, 1):\n    try:\n        os.kill(pid, 9)\n    except OSError:\n"
    "        pass\ndef f(x):\n    return 0",
}


def test_no_cheat_passes_a_test() -> None:
    """The tests' process takes only data from the program's, which never sees a test."""
    assert dict(zip(CHEATS, scores(list(CHEATS.values())), strict=True)) == dict.fromkeys(CHEATS, 0.0)


def test_a_program_cannot_replace_what_a_test_compares_with() -> None:
    program = "abs = round = len = lambda *_: 0\nclass math:\n    isclose = lambda *_: True\ndef f(x):\n    return x"
    assert scores([program], ["assert abs(f(3) - 1) < 1", "import math\nassert math.isclose(f(1), 2)"]) == (0.0,)


HARMFUL = {
    "endless loop": "while True:\n    pass",
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "memory": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "output": "while True:\n    print('x' * 1000)",
    "disk": "n = 0\nwhile True:\n    open(f'/box/{n}', 'w').write('x' * 10**6)\n    n += 1",
    "a child in a session of its own": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)",
    "sleep": "import time\ntime.sleep(60)",
}


@pytest.mark.parametrize("tests", [TESTS, [{"input": "", "output": "7"}]], ids=["asserts", "input"])
def test_harmful_programs_score_nothing_and_leave_nothing(tests: Any) -> None:
    before, started = children(), time.monotonic()
    found = scores(list(HARMFUL.values()), tests, time_limit_seconds=1.0, max_concurrent_programs=4)
    assert found == (0.0,) * len(HARMFUL)
    assert time.monotonic() - started < 45.0
    assert children() == before


def test_a_program_sees_no_file_of_ours_no_variable_and_no_network(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    target = tmp_path / "target"
    target.write_text("unchanged")
    attempts = [
        f"open({str(target)!r}).read()",
        f"open({str(target)!r}, 'w')",
        f"open({str(Path(__file__).resolve())!r})",
        "open('/usr/new', 'w')",
        "open('/new', 'w')",
        "import os; os.environ['SECRET_KEY']",
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "import os; os.chroot('/')",
        "import os; os.setuid(0); open('/box/../new', 'w')",
    ]
    programs = [f"try:\n    {each}\nexcept Exception:\n    print('refused')" for each in attempts]
    assert scores(programs, [{"input": "", "output": "refused"}]) == (1.0,) * len(attempts)
    assert target.read_text() == "unchanged"


def test_no_more_programs_run_at_once_than_allowed() -> None:
    program = "import time\ntime.sleep(0.4)\nprint(1)"
    started = time.monotonic()
    assert scores([program] * 3, [{"input": "", "output": "1"}], max_concurrent_programs=1) == (1.0,) * 3
    assert time.monotonic() - started > 1.2


def test_a_judge_that_is_cancelled_leaves_no_program_behind() -> None:
    before = children()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(judgement(["import time\ntime.sleep(60)"], TESTS, time_limit_seconds=60), 0.5))
    assert children() == before


def test_the_last_closed_block_is_the_program() -> None:
    assert last_block("```python\na\n```\ntext\n```py\nb\n```") == "b"
    assert last_block("```\na\n```") == "a"
    assert last_block("```python\na\n```\ntext\n```json\n{}\n```\ntext\n") == "a"
    assert [last_block(text) for text in ("a", "```python\na", "")] == [None] * 3


@pytest.mark.parametrize(
    ("given", "tests"),
    [
        ("assert f(1)\nassert f(2)", Checks(("assert f(1)", "assert f(2)"))),
        ("import math\nassert f(1)", Checks(("assert f(1)",), "import math")),
        (["assert f(1)"], Checks(("assert f(1)",))),
        ('[{"input": "1", "output": 2}]', Checks(cases=(("1", "2"),))),
        ('{"inputs": ["1"], "outputs": [["a", "b"]]}', Checks(cases=(("1", "a\nb"),))),
        (
            {"test": "def check(c):\n    assert c()", "entry_point": "f"},
            Checks(("def check(c):\n    assert c()\ncheck(f)\n",)),
        ),
        ({"test_list": ["assert f(1)"], "test_imports": ["import re"]}, Checks(("assert f(1)",), "import re")),
    ],
)
def test_tests_are_read_in_the_forms_that_data_sets_have(given: Any, tests: Checks) -> None:
    prompt = make_group([""], answer=str(given)).lease.prompt
    prompt.metadata["answer"] = given  # type: ignore[index]
    assert read_tests(prompt) == tests


@pytest.mark.parametrize("given", ["", "72", "assert (", ["f(1)"], [], [3], {"a": 1, "b": 2}, ["assert True"] * 1001])
def test_a_prompt_without_readable_tests_is_refused_by_name(given: Any) -> None:
    with pytest.raises(UsageError, match="prompt 'fake:0' has no tests"):
        scores([RIGHT], given)


def test_a_machine_without_namespaces_is_refused_with_the_reason(monkeypatch: Any) -> None:
    real = process.confined
    monkeypatch.setattr(process, "confined", lambda *args: [*real(*args)[:3], "-c", "import os; os._exit(125)"])
    with pytest.raises(UsageError, match=r"cannot confine programs on this machine.*user namespaces"):
        process.check_sandbox()
