"""What an update consumes: the last check of the bounds, and what is told of the data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.errors import RunError
from actors.records import Game, Group, Judgement, Lease, Pair
from actors.replay_buffer.buffer import Batch
from launch.run.progress import Consumed, Progress, batch_metrics
from launch.settings.run import RunConfig
from tests.fakes.generators import FakePrompts, group_of
from tests.settings import nested


def config(kind: str, **settings) -> RunConfig:
    base = {"model": {"path": "unused"}, "replay": {"max_staleness": 4}}
    return RunConfig.model_validate(nested({**base, "learner": {"loss": {"kind": kind}}, **settings}))


def group(index: int, players: tuple[int, ...], opponents: tuple[int, ...] = (), scores=None) -> Group:
    """One completion of one token for each version; the judge's scores are 0, 1, 2, ... unless given."""
    made = group_of(Lease(index, 0, FakePrompts().prompt(index), 0, 0.0), *[(v,) for v in players + opponents])
    completions = tuple(replace(c, opponent=i >= len(players)) for i, c in enumerate(made.completions))
    judgement = Judgement(scores or tuple(float(i) for i in range(len(completions))))
    return replace(made, completions=completions, judgement=judgement)


def batch(version: int, *groups: Group) -> Batch:
    return Batch(version, version, groups, tuple(version - each.oldest_version for each in groups))


FRESH = {"opponent": {"max_staleness": 1}}
GAMES = batch(5, group(0, (2, 4), (5, 4)), group(1, (5, 5), (5, 5)))


def test_a_loss_on_pairs_consumes_the_best_and_the_worst() -> None:
    consumed = Consumed.of(batch(1, group(0, (0, 1, 1)), group(1, (1, 1), scores=(2.0, 2.0))), config("dpo"))
    assert all(isinstance(item, Pair) for item in consumed.items)
    assert [item.margin for item in consumed.items] == [2.0, 0.0]
    assert (consumed.staleness, consumed.opponent_staleness, consumed.ties) == ((1, 0), (), 1)


def test_a_loss_on_games_consumes_everything_and_tells_the_ages_of_both_sides() -> None:
    consumed = Consumed.of(GAMES, config("nash_pg", **FRESH))
    assert all(isinstance(item, Game) for item in consumed.items)
    assert (consumed.staleness, consumed.opponent_staleness, consumed.ties) == ((3, 0), (1, 0), 0)


def test_players_that_are_each_other_s_opponents_have_one_age() -> None:
    consumed = Consumed.of(batch(3, group(0, (1, 2, 3, 3))), config("nash_pg"))
    assert consumed.staleness == consumed.opponent_staleness == (2,)


def test_missing_ends_are_replaced_as_the_judging_settings_say() -> None:
    made = group(0, (0, 0))
    unfinished = replace(made, completions=(made.completions[0], replace(made.completions[1], finished=False)))
    for missing, scores in ((-3.0, (0.0, -3.0)), (None, (0.0, 1.0))):
        (game,) = Consumed.of(batch(0, unfinished), config("rloo", judging={"missing_eos_score": missing})).items
        assert isinstance(game, Game)
        assert game.scores == scores


@pytest.mark.parametrize("kind", ["dpo", "nash_pg", "rloo"])
def test_a_group_over_the_bound_fails_the_run(kind: str) -> None:
    with pytest.raises(RunError, match=r"a group of staleness 5 reached the learner, over replay\.max_staleness 4"):
        Consumed.of(batch(5, group(0, (5, 5, 0, 5))), config(kind))


def test_an_opponent_over_its_own_bound_fails_the_run_though_it_is_within_that_of_the_players() -> None:
    stale = batch(5, group(0, (5, 5), (4, 3)))
    with pytest.raises(
        RunError, match=r"an opponent of staleness 2 reached the learner, over .*opponent\.max_staleness 1"
    ):
        Consumed.of(stale, config("nash_pg", **FRESH))
    Consumed.of(stale, config("nash_pg", opponent={"max_staleness": 2}))


def test_metrics_of_games_tell_the_ages_of_players_and_opponents_and_know_no_ties() -> None:
    consumed = Consumed.of(GAMES, config("nash_pg", **FRESH))
    assert batch_metrics(GAMES, consumed) == {
        "staleness_max": 3,
        "staleness_mean": 1.5,
        "opponent_staleness_max": 1,
        "opponent_staleness_mean": 0.5,
        "completion_tokens_mean": 1.0,
        "finished_share": 1.0,
        "score_mean": 1.5,
    }


def test_metrics_of_pairs_tell_the_share_of_ties_and_know_no_opponents() -> None:
    tie, other = group(0, (0, 0), scores=(1.0, 1.0)), group(1, (0, 0))
    consumed = Consumed.of(batch(0, tie, other), config("ipo"))
    metrics = batch_metrics(batch(0, tie, other), consumed)
    assert metrics["tie_share"] == 0.5
    assert not any("opponent" in name for name in metrics)


def test_a_loss_on_scores_alone_has_no_opponents_to_tell_the_age_of() -> None:
    consumed = Consumed.of(batch(1, group(0, (0, 1))), config("rloo"))
    assert consumed.opponent_staleness == ()
    assert not any("opponent" in name for name in batch_metrics(batch(1, group(0, (0, 1))), consumed))


def test_progress_counts_groups_by_the_age_of_players_and_of_opponents() -> None:
    progress = Progress()
    for _ in range(2):
        progress.consume(GAMES, Consumed.of(GAMES, config("nash_pg", **FRESH)))
    assert (progress.staleness, progress.opponent_staleness) == ({3: 2, 0: 2}, {1: 2, 0: 2})
    assert (progress.groups, progress.tokens, progress.ties) == (4, 16, 0)


def test_it_is_said_once_that_unfinished_completions_win_too_often() -> None:
    made = group(0, (0, 0))  # scores 0 and 1
    cut = replace(made, completions=(made.completions[0], replace(made.completions[1], finished=False)))
    settings = config("dpo", judging={"missing_eos_score": None})
    progress, said = Progress(), []
    for update in range(60):
        consumed = Consumed.of(batch(0, cut if update % 2 else made, cut), settings)
        assert batch_metrics(batch(0, cut), consumed)["unfinished_won_share"] == 1.0
        progress.consume(batch(0, cut), consumed)
        said += [progress.unfinished_warning(None)]
    (warning,) = [text for text in said if text]
    assert "best score in 51 of 51 groups" in warning
    assert "missing_eos_score is null" in warning
    quiet = Consumed.of(batch(0, made, cut), config("dpo"))
    assert (quiet.unfinished_won, quiet.items[0].margin) == ((False,), 1.0)


def test_it_is_said_once_that_almost_no_completion_ends() -> None:
    """With 16 tokens for each answer, 92% of the pairs were ties, and no word led to the setting."""
    made = group(0, (0, 0))
    cut = replace(made, completions=tuple(replace(each, finished=False) for each in made.completions))
    progress, said = Progress(), []
    for update in range(150):
        one = batch(0, made if update < 4 else cut)
        progress.consume(one, Consumed.of(one, config("dpo")))
        said += [progress.cut_warning(16)]
    assert [update for update, text in enumerate(said) if text] == [99], "200 completions, of which 8 ended"
    assert "8 of 200 completions ended by themselves" in str(said[99])
    assert "sampling.max_new_tokens is 16: raise it" in str(said[99])
    often = Progress()
    for update in range(150):
        one = batch(0, made if update % 10 == 0 else cut)
        often.consume(one, Consumed.of(one, config("dpo")))
        assert often.cut_warning(16) is None


def test_the_share_of_ties_is_of_all_pairs_and_games_have_none() -> None:
    """85 of 100 pairs were ties, and a run said so nowhere."""
    progress = Progress()
    assert progress.tie_share is None
    for index, scores in enumerate(((1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (2.0, 2.0))):
        made = batch(0, group(index, (0, 0), scores=scores))
        progress.consume(made, Consumed.of(made, config("dpo")))
    assert (progress.pairs, progress.ties, progress.tie_share) == (4, 3, 0.75)
    games = Progress()
    games.consume(GAMES, Consumed.of(GAMES, config("nash_pg", **FRESH)))
    assert games.tie_share is None


def test_what_was_consumed_says_the_reward_and_the_pace() -> None:
    progress, given = Progress(), batch(1, group(0, (0, 1, 1)), group(1, (1, 1), scores=(2.0, 2.0)))
    assert (progress.score, progress.seconds_left(5)) == (None, None)
    progress.consume(given, Consumed.of(given, config("dpo")))
    progress.learning_seconds = 3.0
    assert progress.score == (0 + 1 + 2 + 2 + 2) / 5
    assert progress.seconds_left(5) == 15.0
    assert progress.seconds_left(0) is None, "it was told as 0:00:00 for as long as the last evaluation took"
    progress.consume(Batch(2, 2, (), ()), Consumed((), ()))
    assert (progress.score, progress.seconds_left(5)) == (7 / 5, 7.5), "an empty update has no reward, and took time"
