"""The Bradley-Terry judge against the gold reward where there is one, and against games fitted by hand where not."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from actors import world
from actors.errors import RunError, UsageError
from actors.judges import make_judge
from actors.judges.config import BradleyTerryJudgeConfig
from actors.judges.world import BradleyTerryJudge, fit_bradley_terry
from actors.records import Completion, Group, Lease, Prompt
from actors.world import EOS, FIRST_SYMBOL, INVALID, NOEOS, World
from learner.games.tabular import bradley_terry

CORPUS = world.corpus_outcome_probabilities()


@pytest.fixture(scope="module")
def rewards() -> np.ndarray:
    return BradleyTerryJudge("intransitive", 0).rewards


def group_of(prompt_index: int, *answers: tuple[int, ...]) -> Group:
    prompt = Prompt(f"world:{prompt_index}", world.prompt_token_ids(prompt_index), "")
    completions = [Completion(y, (0.0,) * len(y), (0,) * len(y), "", y[-1] == EOS) for y in answers]
    return Group(Lease(0, 0, prompt, 0, 60.0), tuple(completions))


def family_means(rewards: np.ndarray, index: int, corpus: np.ndarray) -> list[float]:
    families = World("intransitive").families
    return [float(np.average(rewards[families == f], weights=corpus[index, families == f])) for f in range(3)]


def test_two_outcomes_differ_by_the_logit_of_their_preference() -> None:
    """Whatever the weights: .8 = sigmoid(ln 4). The mean under (.25, .75) is 0 at r = (.75 ln 4, -.25 ln 4)."""
    p = np.array([[0.5, 0.8], [0.2, 0.5]])
    assert fit_bradley_terry(p, np.array([0.25, 0.75])) == pytest.approx([0.75 * math.log(4), -0.25 * math.log(4)])


def test_a_balanced_cycle_has_no_reward_and_an_unbalanced_one_likes_what_beats_the_favourite() -> None:
    p = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])
    assert fit_bradley_terry(p, np.full(3, 1 / 3)) == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    r = fit_bradley_terry(p, np.array([0.7, 0.2, 0.1]))
    assert r[1] > r[0] > r[2]


def test_an_outcome_without_weight_has_the_reward_of_one_with_vanishing_weight() -> None:
    p = np.array([[0.5, 0.3, 0.9], [0.7, 0.5, 0.4], [0.1, 0.6, 0.5]])
    without = fit_bradley_terry(p, np.array([0.6, 0.4, 0.0]))
    little = fit_bradley_terry(p, np.array([0.6, 0.4 - 1e-7, 1e-7]))
    assert without == pytest.approx(little, abs=1e-6)
    assert without[0] - without[1] == pytest.approx(math.log(0.3 / 0.7))


def test_preferences_that_no_finite_reward_explains_are_refused() -> None:
    with pytest.raises(RunError, match="did not converge"), np.errstate(all="ignore"):
        fit_bradley_terry(np.array([[0.5, 1.0], [0.0, 0.5]]), np.array([0.5, 0.5]))


@pytest.mark.parametrize("index", [0, 6, 11])
def test_the_fit_is_the_one_of_the_tabular_solver(rewards: np.ndarray, index: int) -> None:
    seen = CORPUS[index] > 0.0
    p = World("intransitive").preference_matrix(index)[np.ix_(seen, seen)]
    other = bradley_terry(p, CORPUS[index, seen])
    other = other - CORPUS[index, seen] @ other
    np.testing.assert_allclose(rewards[index, seen], other, atol=1e-8)


def test_where_the_preference_has_a_reward_the_fit_finds_it() -> None:
    """The transitive task is Bradley-Terry in r*, so r* with its corpus mean taken off is the fit, INVALID included."""
    gold = World("transitive").rewards
    centred = gold - (CORPUS * gold).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(BradleyTerryJudge("transitive", 0).rewards, centred, atol=1e-9)


def test_pairs_of_a_prompt_independent_corpus_give_the_families_these_rewards() -> None:
    """Prompt (0, 0), rock .58, paper .29, scissors .10 of the corpus: mean rewards .063, .523, -.530."""
    corpus = world.corpus_outcome_probabilities(prompt_dependent=False)
    r = fit_bradley_terry(World("intransitive").preference_matrix(0), corpus[0])[None]
    assert family_means(r[0], 0, corpus) == pytest.approx([0.063, 0.523, -0.530], abs=6e-4)


def test_the_family_that_wins_most_against_the_corpus_is_liked_best(rewards: np.ndarray) -> None:
    """At equal quality, the one for which (share of what it beats) - (share of what beats it) is largest.

    It is the family that beats the corpus's favourite, but for prompt (3, 0): there the favourite has .50, what beats
    it .09 and what it beats .39, so that the favourite (.39 - .09) is above what beats it (.50 - .39). The best
    response of all is one of that family, and what beats it wins with sigmoid(2): .3808 over a draw.
    """
    w = World("intransitive")
    liked = []
    for index, cycle in enumerate(world.family_cycle()):
        first, second, third = (CORPUS[index, w.families == f].sum() for f in cycle)
        expected = int(np.argmax([third - second, first - third, second - first]))
        plain = w.qualities[index] == 0.0
        means = [rewards[index, plain & (w.families == f)].mean() for f in cycle]
        assert int(np.argmax(means)) == expected
        best = int(rewards[index].argmax())
        assert w.families[best] == cycle[expected]
        assert w.preference_matrix(index)[:, best].max() - 0.5 == pytest.approx(0.3808, abs=1e-4)
        liked.append(expected)
    assert [index for index, family in enumerate(liked) if family != 1] == [12]


def test_no_answer_has_the_lowest_reward_even_where_the_corpus_has_none(rewards: np.ndarray) -> None:
    """NOEOS, INVALID (no corpus mass) and the empty response lose alike to everything: -3 of quality."""
    assert (CORPUS[:, INVALID] == 0.0).all()
    for row in rewards:
        assert row[INVALID] == pytest.approx(row[0], abs=1e-9)
        assert row[NOEOS] == pytest.approx(row[0], abs=1e-9)
        assert row[INVALID] < row[1:NOEOS].min() - 2.0


def test_rewards_are_centred_on_the_corpus(rewards: np.ndarray) -> None:
    np.testing.assert_allclose((CORPUS * rewards).sum(axis=1), 0.0, atol=1e-12)


def test_the_judge_looks_its_completions_up_and_gives_no_preferences(rewards: np.ndarray) -> None:
    judge = make_judge(BradleyTerryJudgeConfig(), task="intransitive", seed=0)
    stone, page = FIRST_SYMBOL, FIRST_SYMBOL + 3
    groups = [group_of(x, (stone, page, EOS), (EOS,), (stone, stone, stone, page)) for x in (2, 9)]
    answers = asyncio.run(judge.judge(groups))
    for x, answer in zip((2, 9), answers, strict=True):
        assert answer.scores == tuple(rewards[x, [world.outcome([stone, page, EOS]), 0, NOEOS]])
        assert answer.preferences is None


def test_exchanging_the_two_sides_of_every_preference_turns_the_rewards_round() -> None:
    p = World("intransitive").preference_matrix(3)
    np.testing.assert_allclose(fit_bradley_terry(p.T, CORPUS[3]), -fit_bradley_terry(p, CORPUS[3]), atol=1e-9)


def test_a_prompt_from_elsewhere_is_refused() -> None:
    judge = make_judge(BradleyTerryJudgeConfig(), task="intransitive", seed=0)
    foreign = Group(Lease(0, 0, Prompt("mine:0", (1, 2, 3), "hello"), 0, 60.0), ())
    with pytest.raises(UsageError, match="not one of the embedded world's"):
        asyncio.run(judge.judge([foreign]))
