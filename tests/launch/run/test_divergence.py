"""When a figure has left the band: series made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from launch.run.divergence import ENOUGH_NORMS, Departure, DivergenceWatch
from launch.settings.run import BandConfig, RunConfig
from launch.stages.config import DpoRunConfig


def watch(updates: int = 3, max_kl: float | None = 10.0, **band: Any) -> DivergenceWatch:
    return DivergenceWatch(BandConfig(updates=updates, **band), max_kl)


def due(watched: DivergenceWatch, name: str, values: list[float]) -> list[int]:
    """Updates, from 1, at which a departure is due."""
    found = []
    for update, value in enumerate(values, 1):
        watched.update(update, {name: value})
        found += [update] if watched.take() is not None else []
    return found


@pytest.mark.parametrize("figure", ["kl_players", "kl_chosen", "kl_rejected"])
def test_a_figure_must_be_outside_for_some_updates_in_a_row(figure: str) -> None:
    assert due(watch(), figure, [1, 11, 11, 10, 11, 11, 11, 1]) == [7]


def test_a_departure_is_due_once_until_the_figure_has_been_inside_again() -> None:
    assert due(watch(updates=2), "kl_players", [11, 11, 11, 11, 1, 11, 11, 11]) == [2, 7]


def test_figures_count_each_for_itself() -> None:
    watched = watch(updates=2, max_loss=1.0)
    watched.update(1, {"loss": 2.0, "kl_players": 1.0}, "a")
    watched.update(2, {"loss": 0.5, "kl_players": 11.0}, "b")
    assert watched.take() is None
    watched.update(3, {"loss": 0.5, "kl_players": 12.0}, "c")
    found = watched.take()
    assert found == Departure("kl_players", 12.0, 10.0, "divergence.max_kl 10.0", 3, 2, 1)
    assert found.batches == ((2, "b"), (3, "c")), "as many as were outside"
    assert [each.figure for each in watched.outside] == ["kl_players"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("figure", ["loss", "grad_norm", "kl_players"])
def test_what_is_not_finite_is_outside_of_every_band(figure: str, value: float) -> None:
    unlimited = watch(updates=1, max_kl=None, max_grad_norm_ratio=None)
    assert due(unlimited, figure, [1e30, value]) == [2]


def test_both_signs_count() -> None:
    assert due(watch(updates=1), "kl_chosen", [-9.0, -11.0]) == [2]


def test_gradient_norms_are_compared_with_their_running_median() -> None:
    """A median of 2 after enough norms, of which zeros, as of ties, are none: 100 times that is 200."""
    watched = watch(updates=1, max_grad_norm_ratio=100.0)
    norms = [1.0, 2.0, 0.0, 3.0] * 8
    assert due(watched, "grad_norm", norms) == []
    assert due(watched, "grad_norm", [200.0, 201.0]) == [2]
    assert "divergence.max_grad_norm_ratio 100 times the running median 2" in watched.outside[0].band


def test_a_few_gradient_norms_have_no_median() -> None:
    assert due(watch(updates=1), "grad_norm", [1.0] * (ENOUGH_NORMS - 1) + [1e9]) == []
    assert due(watch(updates=1), "grad_norm", [1.0] * ENOUGH_NORMS + [1e9]) == [ENOUGH_NORMS + 1]


def test_an_evaluation_counts_at_once_and_blames_the_policy_that_it_saw() -> None:
    watched = watch()
    watched.evaluation(9.0, 10)
    assert watched.take() is None
    watched.evaluation(11.0, 20)
    assert watched.take() == Departure("kl", 11.0, 10.0, "divergence.max_kl 10.0", 20, 1, 20)
    for kl, update in ((12.0, 30), (1.0, 40)):
        watched.evaluation(kl, update)
        assert watched.take() is None
    assert watched.updates_outside == 0


def test_an_update_blames_the_policy_before_its_step() -> None:
    watched = watch(updates=2)
    watched.update(7, {"kl_players": 11.0})
    watched.update(8, {"kl_players": 11.0})
    found = watched.take()
    assert found is not None
    assert found.policy == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"checkpoints": {"every_updates": 0}}, "checkpoints.every_updates is 0"),
        ({"checkpoints": {"keep": 1}}, "checkpoints.keep 1"),
        ({"deterministic": True}, "deterministic makes the same updates again"),
    ],
)
def test_a_rollback_that_could_not_help_is_refused(settings: dict[str, Any], told: str) -> None:
    base = {"model": {"path": "unused"}, "divergence": {"action": "rollback"}}
    with pytest.raises(ValidationError, match=told):
        RunConfig.model_validate(base | settings)


def test_a_stage_cannot_go_back_to_make_the_same_updates_again() -> None:
    with pytest.raises(ValidationError, match=r"divergence\.action"):
        DpoRunConfig.model_validate({"divergence": {"action": "rollback"}})
