"""The time that a sweep still takes: by hand, for two slots."""

import pytest

from launch.sweep.left import seconds_left


def test_nothing_is_foretold_before_a_run_is_completed() -> None:
    assert seconds_left({}, [("a", 5.0)], ["b"], 2) is None


@pytest.mark.parametrize(
    ("running", "waiting", "slots", "expected"),
    [
        ([], [], 2, 0.0),
        ([("a", 4.0)], [], 2, 6.0),
        ([("a", 40.0)], [], 1, 0.0),  # longer than expected: it may end at any moment
        ([("a", 4.0)], ["a", "a"], 1, 26.0),
        ([("a", 4.0), ("b", 4.0)], ["a", "b"], 2, 46.0),  # the next a runs from 6 to 16, the next b from 16 to 46
        ([("c", 0.0)], [], 1, 20.0),  # no run of c is completed: the mean of 8, 12, 40 and 20
    ],
)
def test_each_run_takes_its_row_s_mean_and_starts_where_a_slot_is_free_first(
    running: list[tuple[str, float]], waiting: list[str], slots: int, expected: float
) -> None:
    taken = {"a": [8.0, 12.0], "b": [40.0, 20.0]}
    assert seconds_left(taken, running, waiting, slots) == pytest.approx(expected)
