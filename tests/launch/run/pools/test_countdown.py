"""When a long step says how far it is, and what."""

from __future__ import annotations

import threading

import pytest

from launch.run.pools.countdown import FIRST_SECONDS, SECONDS, Countdown, telling


def test_a_long_step_tells_its_pace_and_what_is_left_now_and_then() -> None:
    now, said = [0.0], []
    countdown = Countdown("judging", 100, said.append, lambda: now[0])
    for second in range(1, 51):  # two parts a second
        now[0] = float(second)
        countdown.add(2)
    first, later = int(FIRST_SECONDS), int(FIRST_SECONDS + SECONDS)
    assert said == [
        f"judging: {2 * first} of 100, about {50 - first} s left",
        f"judging: {2 * later} of 100, about {50 - later} s left",
    ]


def test_a_step_that_ends_soon_says_nothing_and_one_that_ends_late_not_that_nothing_is_left() -> None:
    now, said = [0.0], []
    countdown = Countdown("sampling", 2, said.append, lambda: now[0])
    now[0] = FIRST_SECONDS - 1.0
    countdown.add()
    now[0] = 1000.0
    countdown.add()
    assert said == []


def test_the_time_of_a_start_is_not_taken_for_that_of_a_part() -> None:
    """Engines load for 28 seconds, and the first of four prompts takes 2: 90 seconds were foretold instead of 6."""
    now, said = [0.0], []
    countdown = Countdown("sampling", 10, said.append, lambda: now[0])
    for second in (28.0, 36.0):  # a second engine begins later
        now[0] = second
        countdown.begin()
    now[0] = 40.0
    countdown.add(5)
    assert said == ["sampling: 5 of 10, about 12 s left"]


def test_minutes_are_counted_past_an_hour() -> None:
    now, said = [0.0], []
    countdown = Countdown("sampling", 10_000, said.append, lambda: now[0])
    now[0] = 1000.0
    countdown.add(1000)
    assert said == ["sampling: 1000 of 10000, about 150 minutes left"]


def test_the_first_of_many_parts_foretells_nothing() -> None:
    now, said = [0.0], []
    countdown = Countdown("sampling", 40, said.append, lambda: now[0])
    now[0] = 10.0
    countdown.add()
    now[0] = 60.0
    countdown.add(3)
    assert said == ["sampling: 1 of 40", "sampling: 4 of 40, about 9 minutes left"]


def test_a_step_without_parts_tells_how_long_it_has_taken() -> None:
    said, told = [], threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with telling("preparing", say, first=0.0, then=1000.0):
        assert told.wait(30.0)
    assert said == ["preparing: 0 s so far"]


def test_a_step_without_parts_that_ends_soon_says_nothing_and_leaves_no_thread() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="of the step"), telling("preparing", said.append):
        raise ValueError("of the step")
    assert said == []
    assert "telling" not in {thread.name for thread in threading.enumerate()}
