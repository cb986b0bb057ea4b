"""The learning rate over a run, over a resume, and what is told of both."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from learner.backend.deepspeed_config import learning_rate, schedule_notes
from learner.config import OptimizerConfig


def test_a_schedule_of_its_own_length_does_not_turn_with_the_run_s() -> None:
    """100 updates, linear to 0; resumed with 200 the rate went from .01 to .50 of the peak."""
    before, own = OptimizerConfig(lr=1.0), OptimizerConfig(lr=1.0, schedule_updates=400)
    assert [learning_rate(before, 99, 100), learning_rate(before, 100, 200)] == pytest.approx([0.01, 0.5])
    assert [learning_rate(own, 99, 100), learning_rate(own, 100, 200)] == pytest.approx([301 / 400, 300 / 400])
    assert learning_rate(own, 500, 1000) == 0.0


@pytest.mark.parametrize("name", ["update", "step"])
def test_a_resume_that_changes_the_learning_rate_tells_both(name: str) -> None:
    (note,) = schedule_notes(OptimizerConfig(lr=1.0), 200, {name: 100, "lr": 0.01})
    assert "update 100 had 0.01, and the next has 0.5, without a warm-up" in note
    assert "learner.optimizer.schedule_updates" in note


def test_a_resume_of_the_same_schedule_says_nothing() -> None:
    last = {"update": 50, "step": 51, "lr": learning_rate(OptimizerConfig(lr=1.0), 49, 100)}
    assert schedule_notes(OptimizerConfig(lr=1.0), 100, last) == []
    assert schedule_notes(OptimizerConfig(lr=1.0, schedule_updates=100), 300, last) == []
    assert schedule_notes(OptimizerConfig(lr=1.0), 100, {"step": 3}) == []  # a part that trained on nothing


def test_any_change_of_the_rates_is_told_not_of_the_length_alone() -> None:
    last = {"update": 50, "lr": 1.0}
    assert schedule_notes(OptimizerConfig(lr=1.0, schedule="constant"), 100, last) == []
    for changed in ({"lr": 2.0}, {"schedule": "cosine"}):
        (note,) = schedule_notes(OptimizerConfig(**{"lr": 1.0, "schedule": "constant", **changed}), 100, last)
        assert "update 50 had 1" in note


def test_a_schedule_that_is_over_is_told_on_a_resume() -> None:
    config = OptimizerConfig(lr=1.0, schedule_updates=100)
    (note,) = schedule_notes(config, 200, {"update": 100, "lr": learning_rate(config, 99, 100)})
    assert "the learning rate is 0 from the next update on" in note


def test_a_finished_run_is_not_warned_of_rates_that_no_update_will_have() -> None:
    """Resumed after all its updates, a run with default settings was told to raise its schedule, which was over."""
    config = OptimizerConfig(lr=1.0)
    last = {"update": 100, "lr": learning_rate(config, 99, 100)}
    assert schedule_notes(config, 100, last) == []
    assert schedule_notes(OptimizerConfig(lr=2.0), 100, last) == []


def test_a_warm_up_longer_than_the_run_is_told() -> None:
    """Warm-up 10 and 5 updates: the largest rate is 5/11 of the peak."""
    (note,) = schedule_notes(OptimizerConfig(lr=1.0, warmup_updates=10), 5)
    assert "warm-up of 10 updates is not over after all 5" in note
    assert "ends at 0.455 and never reaches 1" in note
    assert schedule_notes(OptimizerConfig(lr=1.0, warmup_updates=10), 11) == []


def test_a_schedule_that_ends_within_its_warm_up_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"schedule_updates 10 with warmup_updates 10 ends before the peak"):
        OptimizerConfig(warmup_updates=10, schedule_updates=10)
