"""A tracker that raises, hangs or is slow: nothing of it reaches the run, and the run hears of it once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.tracking import background
from launch.tracking.background import Background, close
from launch.tracking.tracker import RunFacts
from tests.fakes.trackers import FakeTracker, HangingTracker

RUN = RunFacts("a", "0123", Path("nowhere"), "train")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(background, "LONGEST_PAUSE", 0.002)


def run_of(tracker: FakeTracker, steps: int, seconds: float = 10.0) -> tuple[list[str], float]:
    """Give a tracker `steps` updates and an end; return what the run said, and how long it waited."""
    said: list[str] = []
    behind = Background("W&B", tracker, RUN, said.append)
    for step in range(steps):
        behind.call("log", step, {"loss": 1.0}, 0.0)
    behind.call("end", "completed", {})
    started = time.monotonic()
    close([behind], seconds)
    return said, time.monotonic() - started


def steps_of(tracker: FakeTracker) -> list[int]:
    return [call[1] for call in tracker.calls if call[0] == "log"]


def test_a_tracker_gets_everything_in_order_and_then_the_end() -> None:
    tracker = FakeTracker()
    assert run_of(tracker, 5)[0] == []
    assert steps_of(tracker) == [0, 1, 2, 3, 4]
    assert tracker.calls[-1] == ("end", "completed", {})
    assert tracker.run is RUN


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), SystemExit(3), KeyboardInterrupt()])
def test_a_tracker_that_raises_for_a_while_is_offered_the_same_again(error: BaseException) -> None:
    tracker = FakeTracker(fails=3, error=error)
    behind = Background("W&B", tracker, RUN, (said := []).append)
    behind.call("log", 1, {}, 0.0)
    while not tracker.calls:
        time.sleep(0.001)
    close([behind], 10.0)
    assert steps_of(tracker) == [1]
    [text] = said
    assert text.startswith(f"warning: W&B does not take the run's figures: {type(error).__name__}")


def test_figures_that_a_tracker_never_takes_are_left_out_and_counted() -> None:
    class Refusing(FakeTracker):
        def log(self, step, values, now):
            if step == 1:
                raise ValueError("bad name")
            super().log(step, values, now)

    tracker = Refusing()
    said, _ = run_of(tracker, 3)
    assert steps_of(tracker) == [0, 2]
    assert "ValueError: bad name" in said[0]
    assert said[1:] == ["warning: W&B has not taken 1 of the run's figures; metrics.jsonl has all of them"]


def test_a_tracker_that_never_begins_ends_with_the_run() -> None:
    said, waited = run_of(FakeTracker(fails=10**6), 3)
    assert waited < 5.0
    assert [text.partition(":")[2][:40] for text in said] == [
        " W&B does not take the run's figures: Co",
        " W&B has not taken 4 of the run's figure",
    ]


@pytest.mark.parametrize("hangs", ["begin", "log", "end"])
def test_a_tracker_that_hangs_holds_up_the_end_for_a_bounded_time(hangs: str) -> None:
    tracker = HangingTracker(hangs)
    said, waited = run_of(tracker, 3, seconds=0.3)
    assert 0.2 < waited < 3.0
    assert tracker.abandoned
    assert "has not taken" in said[0]
    assert "within 0.3 s; metrics.jsonl has all of them" in said[0]
    tracker.release.set()


def test_the_run_never_waits_for_a_slow_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_WAITING", 10)
    tracker, said = HangingTracker("log"), []
    behind = Background("MLflow", tracker, RUN, said.append)
    started = time.monotonic()
    for step in range(200):
        behind.call("log", step, {}, 0.0)
    assert time.monotonic() - started < 10.0, "the tracker hangs for good, so a call that waits for it never returns"
    assert said == [text for text in said if "10 of them wait, and the oldest are left out" in text]
    assert len(said) == 1
    tracker.release.set()
    close([behind], 10.0)
    assert steps_of(tracker)[-10:] == list(range(190, 200))


def test_the_trackers_of_a_run_share_the_time_at_its_end() -> None:
    trackers = [HangingTracker(), HangingTracker(), FakeTracker()]
    behind = [Background(str(number), each, RUN, lambda text: None) for number, each in enumerate(trackers)]
    for each in behind:
        each.call("end", "completed", {})
    started = time.monotonic()
    close(behind, 3.0)
    assert time.monotonic() - started < 6.0, "each of the two that hang had a time of its own"
    assert trackers[2].calls == [("end", "completed", {})]
    for each in trackers[:2]:
        each.release.set()


def test_what_a_tracker_raises_is_shown_without_what_a_terminal_obeys() -> None:
    said, _ = run_of(FakeTracker(fails=1, error=ValueError("\x1b[2J" + "x" * 10_000)), 1)
    assert "\x1b" not in said[0]
    assert len(said[0]) < 600


def test_a_wait_that_one_notices_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "QUIET_SECONDS", 0.05)
    tracker = FakeTracker(seconds=0.2)
    said, _ = run_of(tracker, 1, seconds=20.0)
    assert [text.partition(",")[0] for text in said] == ["waiting for W&B"]
    assert tracker.calls[-1] == ("end", "completed", {})
