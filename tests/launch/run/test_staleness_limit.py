"""The staleness limit as a run tells it: from measured updates, once, in policy versions, with what to do about it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.records import Completion, Game, Judgement
from actors.replay_buffer.pairing import game_of
from launch.run.staleness_limit import PROBES, LimitProbe, announce, bound_of
from launch.settings.run import RunConfig
from tests.fakes.generators import make_group
from tests.settings import nested

STRENGTH = math.sqrt(2.0) / 6.0
"""Of a cycle of three judged once each: a rotation of sqrt(3/2) times this, 1 / sqrt(12), as fast as cycles get."""
CYCLE = 0.5 + STRENGTH * np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])


def _config(**settings: Any) -> RunConfig:
    base: dict[str, Any] = {
        "model": {"path": "unused"},
        "updates": 60,
        "sampling": {"completions_per_prompt": 4},
        "learner": {"loss": {"kind": "nash_pg", "tau": 0.05}, "optimizer": {"lr": 1e-3}},
        "opponent": {"kind": "self"},
    }
    tree = nested({**base, **settings})
    tree["learner"].setdefault("anchor", {"weight": 0.0})
    return RunConfig.model_validate(tree)


FEW = "the noise of fewer than 6 completions is in it, so the lag is rather too short"


def _game(preferences: Any = CYCLE, players: int = 3, prompt: int = 1) -> Game:
    rows = tuple(tuple(map(float, row)) for row in preferences)
    completion = Completion((2,), (-1.0,), (0,), "", True)
    opponents = (completion,) * (len(rows) - players)
    return Game(0, (prompt,), (completion,) * players, opponents, rows, (0.0,) * len(rows))


def _law(config: RunConfig, step_size: float = 0.1, game: Game | None = None) -> Any:
    """The law after as many equal updates as it takes."""
    probe = LimitProbe(config)
    told = [probe.add([game or _game()], step_size, 1e-3) for _ in range(PROBES)]
    assert told[:-1] == [None] * (PROBES - 1)
    return told[-1]


def test_the_law_is_told_once_after_eight_measured_updates() -> None:
    """Step .1, tau .05, no mixture, on the fastest cycle of three: the published lag is 5."""
    probe = LimitProbe(_config())
    told = [probe.add([_game(), _game()], 0.1, 1e-3) for _ in range(20)]
    assert [number for number, law in enumerate(told) if law is not None] == [7]
    law = told[7]
    assert law == probe.limit
    assert (law.tau, law.beta, law.bound) == (0.05, 0.0, 1)
    assert law.step_size == pytest.approx(0.1)
    assert law.frequency == pytest.approx(1 / math.sqrt(12))
    assert law.largest_lag == 5.0


@pytest.mark.parametrize(
    ("tau", "step", "beta", "lag"),
    [(0.05, 0.1, 0.125, 7), (0.05, 0.2, 0.5, 12), (0.1, 0.2, 0.125, 8), (0.02, 0.1, 0.0, 1)],
)
def test_the_lag_is_that_of_the_run_s_own_tau_and_mixture(tau: float, step: float, beta: float, lag: int) -> None:
    """Rock, paper, scissors; docs/tabular.md has the first of them."""
    learner = {"loss": {"kind": "nash_pg", "tau": tau}, "optimizer": {"lr": 1e-3}}
    law = _law(_config(learner=learner, opponent={"kind": "weighted", "beta": beta}), step)
    assert (law.tau, law.beta, law.largest_lag) == (tau, beta, lag)


def test_the_law_is_estimated_again_and_told_when_it_says_something_else() -> None:
    """It was told once, of the starting policy: 16 where the end of the run had 3, since steps and cycles both grow."""
    probe = LimitProbe(_config(replay={"max_staleness": 3}))
    told = [probe.add([_game()], step, 1e-3) for step in (0.1,) * 8 + (0.09,) * 8 + (0.2,) * 8 + (0.1,) * 8]
    assert [(number, law.largest_lag, law.kept) for number, law in enumerate(told) if law is not None] == [
        (7, 5.0, True), (23, 2.0, False), (31, 5.0, True),
    ]  # fmt: skip
    assert probe.limit is told[31]


def test_the_prompts_that_cycle_fastest_decide_the_law() -> None:
    """A tenth of the prompts cycle, which the mean over prompts told as stable up to lag 153 for steps of .05."""
    even = np.full((3, 3), 0.5)
    games = [_game(CYCLE if prompt % 10 == 0 else even, prompt=prompt) for prompt in range(40)]
    probe = LimitProbe(_config())
    told = [probe.add(games, 0.05, 1e-3) for _ in range(PROBES)]
    assert told[-1].largest_lag == 11.0


def test_labels_of_0_and_1_are_told_to_make_the_lag_too_short() -> None:
    hard = _law(_config(), game=_game([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]))
    assert "the judge says 0 or 1, which adds rotation, so the lag is too short unless it is certain" in hard.describe()


@pytest.mark.parametrize(("step_size", "lr"), [(None, 1e-3), (math.nan, 1e-3), (math.inf, 1e-3), (0.1, 0.0)])
def test_updates_without_a_measured_step_do_not_count(step_size: float | None, lr: float) -> None:
    probe = LimitProbe(_config())
    for _ in range(3 * PROBES):
        assert probe.add([_game()], step_size, lr) is None
    assert [probe.add([_game()], 0.1, 1e-3) is None for _ in range(PROBES)] == [True] * (PROBES - 1) + [False]


def test_steps_of_the_warm_up_are_scaled_to_the_peak_learning_rate() -> None:
    probe = LimitProbe(_config())
    for update in range(PROBES):
        share = (update + 1) / PROBES
        probe.add([_game()], 0.2 * share, 1e-3 * share)
    assert probe.limit is not None
    assert probe.limit.step_size == pytest.approx(0.2)
    assert probe.limit.largest_lag == 2.0


def test_one_wild_update_does_not_change_the_law() -> None:
    probe = LimitProbe(_config())
    even = _game(np.full((3, 3), 0.5))
    for update in range(PROBES):
        probe.add([replace(even, prompt_token_ids=(2,)) if update == 2 else _game()], 5.0 if update == 2 else 0.1, 1e-3)
    assert probe.limit is not None
    assert (probe.limit.step_size, probe.limit.largest_lag) == (pytest.approx(0.1), 5.0)


@pytest.mark.parametrize(("per_publish", "versions"), [(1, 5), (2, 2), (3, 1), (4, 0), (6, 0), (7, -1)])
def test_versions_of_several_updates_count_whole_up_to_the_last_update_that_consumes_them(
    per_publish: int, versions: int
) -> None:
    """With k updates per version an opponent S versions old is up to (S + 1) k - 1 steps old; five are stable here."""
    law = _law(_config(updates=420, replay={"updates_per_publish": per_publish}))
    assert law.largest_lag == versions


@pytest.mark.parametrize(
    ("own", "replay", "bound"), [(None, 3, 3), (0, 3, 0), (2, 3, 2)], ids=["shared", "fresh", "its own"]
)
def test_the_run_s_bound_is_the_opponents_own_where_there_is_one(own: int | None, replay: int, bound: int) -> None:
    config = _config(opponent={"kind": "self", "max_staleness": own}, replay={"max_staleness": replay})
    assert bound_of(config, config.opponent) == bound
    assert _law(config).bound == bound


def test_a_lag_within_the_law_is_told_without_a_warning() -> None:
    law = _law(_config(replay={"max_staleness": 5}))
    assert law.kept
    assert law.describe() == (
        "staleness limit: opponents are stable up to a lag of 5 versions as estimated (tau 0.05, beta 0, measured step "
        f"size 0.1 and rotation 0.289 of the tenth of the prompts that cycles fastest; {FEW}); this run allows 5"
    )


@pytest.mark.parametrize(
    ("order", "setting"), [("lease", "learner.loss.opponent.max_staleness"), ("ready", "replay.max_staleness")]
)
def test_a_bound_over_the_lag_is_a_warning_that_says_what_to_set(order: str, setting: str) -> None:
    law = _law(_config(replay={"max_staleness": 6, "order": order}))
    *_, section, name = setting.split(".")
    followed = {"replay": {"max_staleness": 6, "order": order}, "opponent": {"kind": "self"}}
    followed[section][name] = 5
    assert _law(_config(**followed)).kept
    assert not law.kept
    text = law.describe()
    assert text.startswith(
        "warning: staleness limit: opponents are stable up to a lag of 5 versions only, as estimated ("
    )
    assert f"and this run allows 6: the policy may cycle; set {setting} to 5, lower" in text


def test_a_game_without_a_cycle_allows_any_lag() -> None:
    """An infinite lag is no JSON number and is left out of the figures."""
    law = _law(_config(replay={"max_staleness": 9}), game=_game(np.full((3, 3), 0.5)))
    assert law.largest_lag == math.inf
    assert law.describe().startswith("staleness limit: opponents are stable up to any lag as estimated (")
    assert law.figures() == {"tau": 0.05, "beta": 0.0, "step_size": pytest.approx(0.1), "frequency": 0.0, "bound": 9.0}


def test_the_figures_are_every_number_of_the_law() -> None:
    assert _law(_config()).figures() == {
        "tau": 0.05,
        "beta": 0.0,
        "step_size": pytest.approx(0.1),
        "frequency": pytest.approx(1 / math.sqrt(12)),
        "largest_lag": 5.0,
        "bound": 1.0,
    }


def test_a_judge_s_table_in_float32_is_taken_and_told_as_exact_ones_are() -> None:
    """In float32 the two probabilities of a pair add up to 1 only to about 1e-8."""
    table = CYCLE.astype(np.float32).astype(np.float64)
    assert np.abs(table + table.T - 1.0).max() > 1e-9
    group = make_group(["a", "b", "c"])
    group = replace(group, judgement=Judgement((0.5, 0.5, 0.5), tuple(map(tuple, table.tolist()))))
    law = _law(_config(), game=game_of(group, None))
    assert law.frequency == pytest.approx(1 / math.sqrt(12), abs=1e-6)
    assert law.largest_lag == 5.0


def test_steps_too_large_for_any_opponent_are_a_warning_of_their_own() -> None:
    """Step 2: the root (1 - .1) + i 2 / sqrt(12) is 1.07 from the origin, so that even lag 0 is unstable."""
    law = _law(_config(replay={"max_staleness": 0}), 2.0)
    assert law.largest_lag == -1.0
    assert not law.kept
    assert law.describe().startswith("warning: staleness limit: even opponents of the newest version are unstable (")
    assert "lower learner.optimizer.lr" in law.describe()


@pytest.mark.parametrize("step", [20.1, 1e6])
def test_steps_beyond_the_law_s_range_do_not_end_the_run(step: float) -> None:
    """The law holds up to 1 / tau = 20, and refuses what is over it."""
    assert _law(_config(), step).largest_lag == -1.0


def test_a_policy_that_moves_against_its_advantages_has_no_lag_to_keep() -> None:
    assert _law(_config(), -0.1).largest_lag == math.inf


def test_players_are_measured_among_themselves_and_two_of_them_with_their_opponents() -> None:
    """Opponents that tie with everyone would hide the players' cycle; two players alone have none."""
    surrounded = np.full((5, 5), 0.5)
    surrounded[:3, :3] = CYCLE
    mixture = _config(opponent={"kind": "mixture", "beta": 0.0, "completions_per_prompt": 2})
    assert _law(mixture, game=_game(surrounded, players=3)).frequency == pytest.approx(1 / math.sqrt(12))
    assert _law(mixture, game=_game(CYCLE, players=2)).frequency == pytest.approx(1 / math.sqrt(12))


def test_no_law_is_told_of_an_average_which_has_no_one_age() -> None:
    config = _config(opponent={"kind": "ema"})
    probe = LimitProbe(config)
    assert [probe.add([_game()], 0.1, 1e-3) for _ in range(PROBES)] == [None] * PROBES
    assert "none is known for learner.loss.opponent.kind ema" in announce(config)


@pytest.mark.parametrize(
    ("replay", "versions"),
    [({"max_staleness": 5}, "5 versions"), ({"updates_per_publish": 3}, "1 version")],
)
def test_before_anything_is_measured_the_largest_step_for_the_bound_is_told(replay: Any, versions: str) -> None:
    """Lag 5 both times: to first order stable up to .05 * 12 / 5.5 = .109; what is told must be where the law turns."""
    text = announce(_config(replay=replay))
    assert f"opponents up to {versions} old" in text
    step = float(text.partition("steps up to ")[2].partition(" ")[0])
    assert _law(_config(replay=replay), 0.999 * step).kept
    assert not _law(_config(replay=replay), 1.01 * step).kept
    assert step == pytest.approx(0.109, abs=0.003)


def test_a_mixture_that_only_weights_would_make_is_none_without_them():
    learner = {"loss": {"kind": "nash_pg"}, "correction": {"opponents": "none"}}
    assert "beta 0 and" in announce(_config(learner=learner, opponent={"kind": "weighted", "beta": 0.5}))
    assert "beta 0.5 and" in announce(_config(learner=learner, opponent={"kind": "mixture", "beta": 0.5}))
    assert "beta 0.5 and" in announce(_config(opponent={"kind": "weighted", "beta": 0.5}))


def test_an_anchor_makes_lags_stable_that_are_not_without_one() -> None:
    """Step .1, tau .05 on the fastest cycle of three: 5 without, as published; more than the bound of 64 with one."""
    learner = {"loss": {"kind": "nash_pg", "tau": 0.05}, "optimizer": {"lr": 1e-3}}
    replay = {"max_staleness": 64}
    plain = _law(_config(learner=learner, replay=replay))
    anchored = _law(_config(learner=learner | {"anchor": {"weight": 0.32}}, replay=replay))
    assert (plain.largest_lag, plain.kept) == (5.0, False)
    assert "or set learner.anchor.weight to 0.32" in plain.describe()
    assert anchored.largest_lag >= 64
    assert anchored.kept
    assert "tau 0.05, beta 0, anchor 0.32 over 130 updates" in anchored.describe()
    assert (anchored.figures()["anchor_weight"], anchored.figures()["anchor_horizon"]) == (0.32, 130.0)


def test_the_largest_step_told_before_any_measurement_counts_the_anchor() -> None:
    """With tau + kappa above the fastest cycle's omega every step up to 1 / (tau + kappa) = 2.7 is stable."""
    learner = {"loss": {"kind": "nash_pg", "tau": 0.05}, "anchor": {"weight": 0.32, "horizon": 200}}
    assert "steps up to 2.7 per update" in announce(_config(learner=learner, replay={"max_staleness": 8}))
