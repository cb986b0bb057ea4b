"""When signals raise KeyboardInterrupt, when they wait, and what they ask of a run in the event loop."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from launch.output.process import interrupts


def interrupt(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with interrupts.keeping(), interrupts.heeding():
        yield


@pytest.mark.parametrize("number", interrupts.NUMBERS)
def test_signals_raise_until_the_outcome_stands(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(number)


def test_an_interrupt_after_the_outcome_waits_for_the_next_run_and_ends_that() -> None:
    interrupts.settle()
    interrupt()
    with pytest.raises(KeyboardInterrupt), interrupts.heeding():
        pass
    with interrupts.heeding(), pytest.raises(KeyboardInterrupt):  # the one that waited is told once
        interrupt()


def test_an_interrupt_that_a_package_catches_is_raised_again_at_the_next_check() -> None:
    """As lazy imports do: the run went on as if nobody had asked it to end."""
    with contextlib.suppress(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_an_interrupt_of_one_run_is_not_raised_in_the_next() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.heeding():
        interrupt()
    with interrupts.heeding():
        interrupts.check()


def test_a_handler_that_is_set_within_is_undone() -> None:
    with interrupts.keeping():
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(number))
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.heed()
    interrupt(signal.SIGINT)


INT, TERM, HUP, CPU, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1


@pytest.mark.parametrize(
    ("signals", "asked"),
    [
        ([(INT, 0.0), (INT, 0.1)], ["stop", "end"]),
        ([(TERM, 0.0), (TERM, 0.1), (TERM, 0.2)], ["stop", None, None]),
        ([(TERM, 0.0), (TERM, 2.0)], ["stop", "end"]),
        ([(HUP, 0.0), (HUP, 0.1), (TERM, 0.2)], ["stop", None, None]),
        ([(CPU, float(second)) for second in range(60)], ["stop", *[None] * 59]),
        ([(USR1, 0.0), (TERM, 60.0), (TERM, 90.0)], ["stop", "repeat", "end"]),
        ([(TERM, 0.0), (CPU, 5.0), (INT, 9.0)], ["stop", None, "end"]),
        ([(INT, 0.0), (HUP, 5.0), (HUP, 9.0), (TERM, 20.0)], ["stop", None, None, "end"]),
    ],
    ids=[
        "two Ctrl-C are two",
        "one from each thread of a dead supervisor",
        "a second SIGTERM",
        "a terminal that closes",
        "a limit of CPU time tells every second",
        "a scheduler warns, and then ends the job",
        "a warning does not count as the second",
        "a terminal that closes after Ctrl-C does not hurry it",
    ],
)
def test_what_signals_ask_of_a_run(signals: list[tuple[int, float]], asked: list[str | None]) -> None:
    requests = interrupts.Requests()
    assert [requests.hear(number, now) for number, now in signals] == asked
