"""When Ctrl-C and SIGTERM raise KeyboardInterrupt, and when they wait."""

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
def test_both_signals_raise_until_the_outcome_stands(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(number)


def test_an_interrupt_after_the_outcome_waits_for_the_next_run_and_ends_that() -> None:
    interrupts.settle()
    interrupt()
    with pytest.raises(KeyboardInterrupt), interrupts.heeding():
        pass
    with interrupts.heeding(), pytest.raises(KeyboardInterrupt):  # the one that waited is told once
        interrupt()


def test_a_handler_that_is_set_within_is_undone() -> None:
    with interrupts.keeping():
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(number))
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.heed()
    interrupt(signal.SIGINT)
