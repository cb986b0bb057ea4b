"""The staleness limit of losses on pairs: who is told one, from what, and why others are told none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.records import Group, Judgement
from actors.replay_buffer.pairing import best_and_worst
from launch.run.staleness_limit import PROBES, SCORES_ONLY, LimitProbe, StalenessLimit, announce
from launch.settings.run import RunConfig
from tests.fakes.generators import make_group
from tests.settings import nested


def _config(kind: str = "dpo", completions: int = 3, beta: float = 0.1, **settings: Any) -> RunConfig:
    loss = {"kind": kind} if kind in ("best_of_n", "rloo") else {"kind": kind, "beta": beta}
    base: dict[str, Any] = {
        "model": {"path": "unused"},
        "updates": 60,
        "sampling": {"completions_per_prompt": completions},
        "learner": {"loss": loss, "optimizer": {"lr": 1e-3}} | settings.pop("learner", {}),
    }
    return RunConfig.model_validate(nested({**base, **settings}))


def _group(table: Any, scores: Sequence[float] | None = None, prompt: int = 0) -> Group:
    rows = None if table is None else tuple(tuple(map(float, row)) for row in np.asarray(table))
    means = scores if scores is not None else [sum(row) for row in rows or ()]
    group = make_group(["a"] * len(means), index=prompt, judgement=Judgement(tuple(means), rows))
    return replace(group, lease=replace(group.lease, prompt=replace(group.lease.prompt, token_ids=(1, prompt))))


def _cycle(by: float = 0.1) -> np.ndarray:
    """Three that beat each other in turn with probability 1/2 + by."""
    return 0.5 + by * np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])


def _ordered(completions: int) -> np.ndarray:
    scores = np.arange(completions, 0.0, -1.0)
    return 1.0 / (1.0 + np.exp(scores - scores[:, None]))


CYCLE_AMONG_THREE = (_cycle(), *[_ordered(3)] * 2)
"""Groups of one prompt: of three groups one cycles, which counts 3/8 x 1/3 = 1/8."""


def _told(config: RunConfig, tables: Sequence[Any] = CYCLE_AMONG_THREE, step: float = 0.1) -> tuple[Any, list[str]]:
    """What an update after another tells, each with a group of each table, after the first, which measures nothing."""
    probe, told = LimitProbe(config), []
    groups = [_group(table) for table in tables]
    for update in range(PROBES + 1):
        measured = step if probe.due(update) else None
        assert (measured is None) == (update == 0)
        pairs = [best_and_worst(group, None) for group in groups]
        told.append(probe.hear(groups, pairs, measured, 1e-3))
    assert told[:-1] == [None] * PROBES
    return probe.limit, told


def test_a_limit_is_told_of_what_signs_leave_unexplained() -> None:
    """Labels are certain however close the judge's call: omega^2 = 1/8. The pull is beta / 4 x 2 / 3."""
    limit, told = _told(_config())
    assert isinstance(limit, StalenessLimit)
    assert limit.frequency == pytest.approx(math.sqrt(1 / 8))
    assert limit.tau == pytest.approx(0.1 / 6)
    # eta (d + 1/2) < tau / omega^2: 1.33 - 0.5, so 0 learner steps.
    assert (limit.largest_lag, limit.bound, limit.kept) == (0.0, 1, False)
    assert told[-1] is not None
    assert told[-1].startswith(
        "warning: staleness limit: pairs are stable up to a lag of 0 versions only, as estimated (beta 0.1, measured "
        "step size 0.1 and rotation 0.354 of the tenth of the prompts that cycles fastest; the noise of fewer than 6 "
    )
    assert "set replay.max_staleness to 0, lower learner.optimizer.lr or" in told[-1]
    assert "or raise learner.loss.beta, or set learner.anchor.weight to 2.03" in told[-1]


def test_what_the_warning_advises_is_stable() -> None:
    """Each remedy alone: the bound, the step, the anchor; and enough of beta."""
    assert _told(_config(replay={"max_staleness": 0}))[0].kept
    assert _told(_config(), step=0.04)[0].kept
    assert _told(_config(learner={"anchor": {"weight": 2.03}}))[0].kept
    assert _told(_config(learner={"anchor": {"weight": 2.03}}, replay={"max_staleness": 16}))[0].kept
    assert _told(_config(beta=0.4))[0].kept


def test_ipo_has_the_whole_slope_and_label_smoothing_less_rotation() -> None:
    """ipo: pull 2 beta / 3. A smoothing of .1 takes a fifth of every label, so the cycle counts 3/2 x .4^2."""
    assert _told(_config("ipo"))[0].tau == pytest.approx(0.2 / 3)
    loss = {"kind": "dpo", "beta": 0.1, "label_smoothing": 0.1}
    limit, _ = _told(_config(learner={"loss": loss}), tables=(_cycle(),))
    assert limit.frequency == pytest.approx(math.sqrt(1.5) * 0.4)


def test_preferences_in_an_order_allow_any_lag() -> None:
    limit, told = _told(_config(completions=6), tables=(_ordered(6),))
    assert (limit.frequency, limit.largest_lag) == (pytest.approx(0.0, abs=1e-9), math.inf)
    assert told[-1] is not None
    assert "pairs are stable up to any lag as estimated" in told[-1]
    assert "pairs of best and worst bear more than the law says" in told[-1]


def test_the_figures_name_the_pull_and_the_setting_that_makes_it() -> None:
    figures = _told(_config())[0].figures()
    assert set(figures) == {"tau", "beta", "step_size", "frequency", "largest_lag", "bound", "pair_beta"}
    assert (figures["pair_beta"], figures["beta"]) == (0.1, 0.0)


def test_a_judge_that_scores_is_told_of_once_and_nothing_is_measured() -> None:
    probe, groups = LimitProbe(_config()), [_group(None, (0.0, 1.0, 2.0))]
    told = [probe.hear(groups, [], None, 1e-3) for _ in range(3)]
    assert told == [SCORES_ONLY, None, None]
    assert not any(probe.due(update) for update in range(50))


@pytest.mark.parametrize(("kind", "smoothing"), [("ipo", 0.0), ("dpo", 0.1)])
def test_certain_labels_of_a_score_do_cycle_where_the_loss_cannot_explain_them(kind: str, smoothing: float) -> None:
    """Of three in a row ipo's line leaves labels 1, 1 and 0 a cycle of 1/6, which counts 3/2 / 36."""
    loss = {"kind": kind, "beta": 0.1, "label_smoothing": smoothing}
    probe, groups = LimitProbe(_config(learner={"loss": loss})), [_group(None, (2.0, 1.0, 0.0))]
    told = [probe.hear(groups, [], 0.1 if probe.due(update) else None, 1e-3) for update in range(PROBES + 1)]
    assert told[-1] is not None
    assert probe.limit is not None
    assert probe.limit.frequency > 0.0
    if kind == "ipo":
        assert probe.limit.frequency == pytest.approx(math.sqrt(1.5) / 6.0)


@pytest.mark.parametrize(
    ("kind", "completions", "why"),
    [
        ("dpo", 2, "takes three completions of a prompt to see preferences cycle; set sampling.completions_per_prompt"),
        ("ipo", 2, "takes three completions of a prompt to see preferences cycle; set sampling.completions_per_prompt"),
        ("slic", 4, "none is known for learner.loss.kind slic"),
        ("best_of_n", 4, "none is known for learner.loss.kind best_of_n"),
        ("dpo", 3, ""),
        ("ipo", 4, ""),
        ("rloo", 4, ""),
    ],
)
def test_who_is_told_none_is_told_why_before_the_first_update(kind: str, completions: int, why: str) -> None:
    config = _config(kind, completions)
    text = announce(config)
    assert (why in text) if why else text == ""
    if why or kind == "rloo":
        probe, groups = LimitProbe(config), [_group(_cycle())]
        assert not any(probe.due(update) for update in range(50))
        assert [probe.hear(groups, [], None, 1e-3) for _ in range(3)] == [None] * 3
