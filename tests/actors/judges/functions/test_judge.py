"""A user's function in a process of its own: whatever it does there, the judge lives, tells it, and goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.errors import RunError, UsageError
from actors.judges.config import EnsembleJudgeConfig, FunctionJudgeConfig, JudgingConfig
from actors.judges.factory import make_judge
from actors.judges.functions.child import Function
from actors.judges.functions.judge import FunctionJudge
from actors.judges.protocol import JudgeDeathError
from actors.judges.trial import meet
from actors.judges.worker import JudgeWorker
from actors.records import Failure, Group, Judgement
from actors.user_code import UserCodeError
from tests.fakes.generators import make_group

MODULE = """
import asyncio, ctypes, os, random, re, signal, subprocess, sys, time

calls = []

def sane(prompt, completions):
    calls.append(prompt.id)
    return [float(len(calls))] * len(completions)

async def blocks(prompt, completions):
    time.sleep(60)

def holds_the_interpreter(prompt, completions):
    re.match(r"(a+)+$", "a" * 40 + "b")

class Endless:
    def item(self):
        while True: pass

def answers_for_ever(prompt, completions):
    return [Endless()] * len(completions)

class Unreadable(BaseException):
    def __str__(self):
        while True: pass

def cannot_be_told(prompt, completions):
    raise Unreadable

def stops(prompt, completions):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)

def exits(prompt, completions):
    os._exit(3)

def aborts(prompt, completions):
    os.abort()

def is_killed(prompt, completions):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def crashes(prompt, completions):
    ctypes.string_at(0)

async def exits_in_a_task(prompt, completions):
    async def leave(): raise SystemExit(4)
    await asyncio.create_task(leave())

async def hangs_up(prompt, completions):
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    time.sleep(60)

def writes_everywhere(prompt, completions):
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor < 3: continue
        try: os.write(descriptor, b"\\xff" * 100)
        except OSError: pass
    time.sleep(60)

def prints(prompt, completions):
    for _ in range(10): print("x" * (1 << 20))
    os.write(2, b"by the file descriptor")
    return [1.0] * len(completions)

def takes_memory(prompt, completions):
    return [float(len(bytearray(2 << 30)))] * len(completions)

def reads_the_terminal(prompt, completions):
    return [float(len(sys.stdin.read()))] * len(completions)

def interrupted(prompt, completions):
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit,
           "CancelledError": asyncio.CancelledError}[prompt.answer]("left")

def leaves_children(prompt, completions):
    started = [subprocess.Popen(["sleep", "600"], start_new_session=each) for each in (False, True)]
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    with open(prompt.answer, "w") as file:
        file.write(" ".join(str(each.pid) for each in started))
    time.sleep(600)

async def waits(prompt, completions):
    calls.append(prompt.id)
    while len(calls) < 2: await asyncio.sleep(0.01)
    return [1.0] * len(completions)

def hangs_for_one(prompt, completions):
    time.sleep(60 if prompt.answer == "hang" else 0.25)
    return [1.0] * len(completions)

"""
GROUPS = [make_group(["a", "bbb"], index=0), make_group(["cc", ""], index=1)]
Make = Callable[..., FunctionJudge]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "hostile_judges.py").write_text(MODULE)
    for name, text in (("hangs", "while True: pass"), ("exits", "import os; os._exit(3)"), ("leaves", "exit(5)")):
        (directory / f"{name}_at_import.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield "hostile_judges"


def answer(path: str, groups: Sequence[Any]) -> list[Judgement]:
    with closing(FunctionJudge(FunctionJudgeConfig(path=path))) as judge:
        return asyncio.run(judge.judge(groups))


def judged(path: str, groups: Sequence[Any] = GROUPS, limit: float = 0.3, **settings: Any) -> list[Group | Failure]:
    """What a worker makes of `groups` with the function at `path`, without retries."""
    function = FunctionJudgeConfig(path=path, **settings)
    judging = JudgingConfig(judge=function, timeout_seconds=limit, retries=0)
    with closing(FunctionJudge(function)) as judge:
        return asyncio.run(JudgeWorker(judging, judge=judge).judge(groups))


def reason(path: str, groups: Sequence[Any] = GROUPS[:1], limit: float = 0.3, **settings: Any) -> str:
    (failure,) = judged(path, groups, limit, **settings)
    assert isinstance(failure, Failure)
    return failure.reason


def line_of(name: str) -> int:
    return next(n for n, line in enumerate(MODULE.splitlines(), start=1) if f"def {name}(" in line)


def test_the_module_stays_loaded_between_calls_and_its_state_with_it(module: str) -> None:
    with closing(FunctionJudge(FunctionJudgeConfig(path=f"{module}:sane"))) as judge:
        scores = [asyncio.run(judge.judge(GROUPS))[k].scores for k in (0, 1)]
    assert scores == [(1.0, 1.0), (4.0, 4.0)]


@pytest.mark.parametrize("name", ["blocks", "holds_the_interpreter", "answers_for_ever", "cannot_be_told", "stops"])
def test_a_function_that_does_not_answer_is_ended_and_named_with_file_and_limit(module: str, name: str) -> None:
    """A limit in the function's own process would not be kept: it blocks the loop, or holds the interpreter's lock."""
    started = time.monotonic()
    said = reason(f"{module}:{name}")
    assert said.startswith(f"judge function '{module}:{name}' (")
    assert said.endswith(f"hostile_judges.py:{line_of(name)}) did not answer within 0.3 s")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("exits", "ended with exit code 3"),
        ("aborts", "was ended by SIGABRT"),
        ("is_killed", "was ended by SIGKILL"),
        ("crashes", "was ended by SIGSEGV"),
        ("exits_in_a_task", "ended with exit code 4"),
        ("hangs_up", "closed or broke the connection to its judge"),
        ("writes_everywhere", "closed or broke the connection to its judge"),
    ],
)
def test_a_function_that_ends_its_process_is_named_with_the_way_it_ended(module: str, name: str, how: str) -> None:
    said = reason(f"{module}:{name}", limit=50.0)
    assert f"the process of judge function '{module}:{name}' (" in said
    assert f"hostile_judges.py:{line_of(name)}) {how}; correct the function" in said
    assert "resume" not in said


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"])
def test_an_exception_that_is_no_exception_is_a_failure_of_its_own(module: str, kind: str) -> None:
    said = reason(f"{module}:interrupted", [make_group(["a", "b"], answer=kind)], limit=50.0)
    assert said.startswith(f"judge function '{module}:interrupted' raised {kind}: left (")


def test_the_next_call_finds_a_new_process(module: str) -> None:
    with closing(FunctionJudge(FunctionJudgeConfig(path=f"{module}:exits"))) as judge:
        for _ in range(2):
            with pytest.raises(JudgeDeathError, match="ended with exit code 3"):
                asyncio.run(judge.judge(GROUPS))


def test_a_function_that_ends_on_every_group_is_not_started_for_each(module: str) -> None:
    reasons = [each.reason for each in judged(f"{module}:exits", GROUPS * 2, limit=50.0) if isinstance(each, Failure)]
    assert len(reasons) == 4
    assert reasons[1:] == ["not tried: the judge ended its process on 1 group in a row"] * 3


def test_a_module_that_cannot_be_imported_again_is_not_tried_for_each_group(module: str, tmp_path: Path) -> None:
    """A restart may wait as long as an import may take."""
    (tmp_path / "imported_once.py").write_text(
        "import os\nos.mkdir(__file__ + 'd')\ndef exits(prompt, completions): os._exit(3)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        failures = judged("imported_once:exits", GROUPS * 2, limit=50.0)
    reasons = [each.reason for each in failures if isinstance(each, Failure)]
    assert re.match(r"judge function .* could not be started again: .* raised FileExistsError", reasons[0])
    assert reasons[1:] == ["not tried: the judge ended its process on 1 group in a row"] * 3


def test_memory_beyond_the_limit_is_a_failure_that_names_the_setting(module: str) -> None:
    said = reason(f"{module}:takes_memory", limit=50.0, memory_mb=1024)
    assert said.startswith(f"judge function '{module}:takes_memory' raised MemoryError")
    assert said.endswith("; its process may use judging.judge.memory_mb 1024 of address space")


def test_what_a_function_prints_is_bounded_and_never_makes_it_wait(
    module: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.judges.functions.host.MOST_PRINTED", 2 << 20)
    (judgement,) = judged(f"{module}:prints", GROUPS[:1], limit=50.0)
    assert isinstance(judgement, Group)
    printed = ""
    for _ in range(100):
        printed += capfd.readouterr().err
        if "dropped" in printed:
            break
        time.sleep(0.05)
    assert printed.count("x") == (2 << 20) - 1  # and an end of line
    assert printed.endswith("has printed 2 MiB; the rest is dropped\n")


def test_a_function_that_reads_standard_input_finds_it_empty(module: str) -> None:
    (group,) = judged(f"{module}:reads_the_terminal", GROUPS[:1], limit=50.0)
    assert isinstance(group, Group)
    assert group.judgement is not None
    assert group.judgement.scores == (0.0, 0.0)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_when_a_function_runs_out_of_time_its_children_end_with_it(module: str, tmp_path: Path) -> None:
    """Those that left for a session of their own too."""
    group = make_group(["a", "b"], answer=str(tmp_path / "pids"))
    assert "did not answer" in reason(f"{module}:leaves_children", [group], limit=1.5)
    pids = [int(each) for each in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(running, pids)))


def environment() -> dict[str, str]:
    """Variables of a process that finds what is found here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])}


def test_a_function_that_never_returns_does_not_keep_its_judge_s_process_alive(module: str) -> None:
    script = textwrap.dedent("""
        import asyncio
        from actors.judges.config import FunctionJudgeConfig, JudgingConfig
        from actors.judges.worker import JudgeWorker
        from tests.fakes.generators import make_group

        config = JudgingConfig(judge=FunctionJudgeConfig(path="hostile_judges:blocks"), timeout_seconds=0.1, retries=0)
        print(asyncio.run(JudgeWorker(config).judge([make_group(["a", "b"])]))[0].reason)
    """)
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.startswith(f"judge function '{module}:blocks' (")
    assert ended.stdout.endswith(" did not answer within 0.1 s\n")


@pytest.mark.parametrize("first", ["the judge", "its child", "its grandchild"])
def test_nothing_of_a_function_outlives_its_judge(module: str, tmp_path: Path, first: str) -> None:
    """Killed as by the kernel, a judge cannot end its processes itself. Ray kills its workers' children before them;
    a program in a session of its own was left."""
    script = textwrap.dedent(f"""
        import asyncio
        from actors.judges.config import FunctionJudgeConfig
        from actors.judges.functions.judge import FunctionJudge
        from tests.fakes.generators import make_group

        judge = FunctionJudge(FunctionJudgeConfig(path="hostile_judges:leaves_children"))
        asyncio.run(judge.judge([make_group(["a", "b"], answer={str(tmp_path / "pids")!r})]))
    """)
    judge = subprocess.Popen([sys.executable, "-c", script], env=environment())
    try:
        wait_until(lambda: (tmp_path / "pids").is_file() and len((tmp_path / "pids").read_text().split()) == 2, 120.0)
        family = [each.pid for each in psutil.Process(judge.pid).children(recursive=True)]
        assert len(family) == 6  # two supervisors, function, two sleeping programs and a fork
        if first != "the judge":
            os.kill(family[first == "its grandchild"], signal.SIGKILL)
            wait_until(lambda: not any(map(running, family)))
    finally:
        judge.send_signal(signal.SIGKILL)
        judge.wait()
    wait_until(lambda: not any(map(running, family)))


def test_two_batches_are_judged_at_a_time(module: str) -> None:
    async def both(judge: FunctionJudge) -> Any:
        return await asyncio.gather(judge.judge(GROUPS[:1]), judge.judge(GROUPS[1:]))

    with closing(FunctionJudge(FunctionJudgeConfig(path=f"{module}:waits"))) as judge:
        assert len(asyncio.run(asyncio.wait_for(both(judge), 10.0))) == 2


def test_a_batch_whose_process_ends_with_another_batch_is_judged_by_the_next_process(module: str) -> None:
    hanging, quick = make_group(["a", "b"], answer="hang"), make_group(["a", "b"])

    async def both(judge: FunctionJudge) -> list[Judgement]:
        async def later() -> list[Judgement]:
            await asyncio.sleep(0.35)  # a quarter of a second is not over when the other has its half
            return await judge.judge([quick])

        second = asyncio.create_task(later())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await judge.judge([hanging])
        return await second

    with closing(FunctionJudge(FunctionJudgeConfig(path=f"{module}:hangs_for_one"))) as judge:
        assert asyncio.run(both(judge)) == [Judgement((1.0, 1.0))]


def test_in_an_ensemble_the_function_that_does_not_answer_is_named_and_started_again(module: str) -> None:
    function = {"judge": {"kind": "function", "path": f"{module}:hangs_for_one"}}
    config = EnsembleJudgeConfig.model_validate({"members": [{"judge": {"kind": "verifier"}}, function]})
    judging = JudgingConfig(judge=config, timeout_seconds=2.0, retries=0, max_batch_groups=1)
    groups = [make_group(["#### 1", "#### 2"], answer=answer) for answer in ("hang", "#### 1")]
    with closing(make_judge(config)) as judge:  # type: ignore[type-var]
        failed, group = asyncio.run(JudgeWorker(judging, judge=judge).judge(groups))
    assert isinstance(failed, Failure)
    assert failed.reason.startswith(f"the ensemble with judge function '{module}:hangs_for_one' (")
    assert failed.reason.endswith(" did not answer within 2 s")
    assert isinstance(group, Group)
    assert group.judgement is not None
    assert group.judgement.scores == (1.0, 0.5)  # half of the verifier's 1 and 0, and of the function's 1 and 1


def test_a_function_that_hangs_when_it_is_met_is_refused_and_leaves_nothing(module: str) -> None:
    judging = JudgingConfig(judge=FunctionJudgeConfig(path=f"{module}:holds_the_interpreter"), timeout_seconds=0.3)
    before = set(psutil.Process().children(recursive=True))  # of this process's other tests
    with pytest.raises(UsageError, match=r"interpreter did not judge .*judging\.timeout_seconds 0\.3; make it"):
        meet(judging.judge, judging, make_group(["a", "b"]), None)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hangs_at_import:f", r"was not imported within judging\.judge\.import_timeout_seconds 0\.6;"),
        ("exits_at_import:f", r"the process that imports it ended with exit code 3; .* its import must not end"),
        ("leaves_at_import:f", r"module 'leaves_at_import' raised SystemExit: 5 \(.*leaves_at_import\.py:1"),
        ("not_there:f", r"module 'not_there' cannot be imported where it is needed"),
        ("hostile_judges:nobody", "has no function 'nobody'"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused_when_the_judge_is_made(module: str, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        FunctionJudge(FunctionJudgeConfig(path=name, import_timeout_seconds=0.6 if "hangs" in name else 60.0))
    assert module


def test_errors_come_back_as_what_they_were(module: str) -> None:
    """A wrong request is not tried again; a user's error has its traceback."""
    with pytest.raises(UserCodeError, match="raised KeyError: 'x'") as caught:
        answer(f"{module}:interrupted", [make_group(["a", "b"], answer="x")])
    assert caught.value.trace.splitlines()[0].endswith(f"line {line_of('interrupted') + 1}, in interrupted")
    here = "tests.actors.judges.functions.test_judge"
    with pytest.raises(RunError, match=r"answered one float; it must return a list") as refused:
        answer(f"{here}:_one_number", GROUPS)
    assert type(refused.value) is RunError
    with pytest.raises(UsageError, match="is no check"):
        answer("actors.judges.instructions:followed", [make_group(["a", "b"], answer="nonsense")])


def _one_number(prompt: Any, completions: Any) -> float:
    return 1.0


def test_a_function_of_the_repository_scores_there_as_it_does_here() -> None:
    path = "actors.judges.instructions:followed"
    checks = "words=2-3; no_commas; lowercase; bullets=3; sentences=1; includes=water"
    texts = ["Water, please.", "- a\n- b\n- c", "water", "", "WATER! Is. It?"]
    groups = [make_group(texts, answer=checks, index=index) for index in range(3)]
    here = asyncio.run(Function(path).judge(groups))
    assert answer(path, groups) == here
