"""The embedded world's judges: gold against the world itself, Bradley-Terry against gold rewards and games by hand."""

from __future__ import annotations

import asyncio
import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from actors import world
from actors.data.config import PromptConfig
from actors.data.prompts import PromptSource
from actors.errors import RunError, UsageError
from actors.judges.config import BradleyTerryJudgeConfig, GoldJudgeConfig, JudgingConfig
from actors.judges.factory import make_judge
from actors.judges.world import BradleyTerryJudge, fit_bradley_terry
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.world import EOS, FIRST_SYMBOL, INVALID, NOEOS, World, response_tokens, tokenizer
from learner.games.tabular import bradley_terry

CORPUS = world.corpus_outcome_probabilities()


@pytest.fixture(scope="module")
def rewards() -> np.ndarray:
    return BradleyTerryJudge(BradleyTerryJudgeConfig(task="intransitive")).rewards


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
    fitted = BradleyTerryJudge(BradleyTerryJudgeConfig(task="transitive")).rewards
    np.testing.assert_allclose(fitted, centred, atol=1e-9)


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
    judge = make_judge(BradleyTerryJudgeConfig(task="intransitive"))
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
    judge = make_judge(BradleyTerryJudgeConfig(task="intransitive"))
    foreign = Group(Lease(0, 0, Prompt("mine:0", (1, 2, 3), "hello"), 0, 60.0), ())
    with pytest.raises(UsageError, match="not one of the embedded world's"):
        asyncio.run(judge.judge([foreign]))


# The gold judge.


def world_group(prompt_index: int, responses: tuple[int, ...]) -> Group:
    """A group of the world's own responses, by their number."""
    prompt = PromptSource(PromptConfig(source="world", shuffle=False), tokenizer()).prompt(prompt_index)
    completions = []
    for row in responses:
        ids = [int(token) for token in response_tokens()[row]]
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        zeros = (0,) * len(ids)
        completions.append(Completion(tuple(ids), (-1.0,) * len(ids), zeros, tokenizer().decode(ids), EOS in ids))
    return Group(Lease(0, 0, prompt, 0, 60.0), tuple(completions))


def judge(task: Any, *groups: Group) -> list[Judgement]:
    return list(asyncio.run(make_judge(GoldJudgeConfig(task=task)).judge(groups)))


def test_the_transitive_task_is_scored_with_the_worlds_reward_and_nothing_else() -> None:
    group = world_group(5, (3, 40, 200))
    (judgement,) = judge("transitive", group)
    assert judgement.scores == World("transitive", 0).scores(group.lease.prompt, group.completions)
    assert len(set(judgement.scores)) > 1
    assert judgement.preferences is None


def test_the_intransitive_task_is_scored_with_the_mean_preference_over_the_others() -> None:
    group = world_group(2, (3, 40, 200))
    (judgement,) = judge("intransitive", group)
    p = World("intransitive", 0).preferences(group.lease.prompt, group.completions)
    assert judgement.preferences == p
    expected = ((p[0][1] + p[0][2]) / 2, (p[1][0] + p[1][2]) / 2, (p[2][0] + p[2][1]) / 2)
    assert judgement.scores == pytest.approx(expected)
    assert sum(judgement.scores) == pytest.approx(1.5)  # P(i > j) + P(j > i) = 1 over three pairs, halved


def test_scores_follow_their_completions_when_these_change_places() -> None:
    responses = (3, 40, 200)
    for task in ("transitive", "intransitive"):
        (reference,) = judge(task, world_group(9, responses))
        for order in permutations(range(3)):
            (permuted,) = judge(task, world_group(9, tuple(responses[i] for i in order)))
            assert permuted.scores == pytest.approx([reference.scores[i] for i in order])


def test_groups_are_answered_in_order() -> None:
    groups = [world_group(index, (3, 40)) for index in range(4)]
    assert judge("transitive", *groups) == [judge("transitive", group)[0] for group in groups]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"task\n.*'transitive' or 'intransitive'"):
        GoldJudgeConfig(task="chess")
    with pytest.raises(UsageError, match="unknown world task 'chess'"):
        World("chess")


# Where task and seed come from.


@pytest.mark.parametrize("kind", ["gold", "bradley_terry"])
def test_an_unset_task_and_seed_are_the_run_s_and_set_ones_stay_among_members_too(kind: str) -> None:
    def filled(**settings: Any) -> list[tuple[str, int]]:
        judge = {"kind": kind, **settings}
        ensemble = {"kind": "ensemble", "members": [{"judge": {"kind": "verifier"}}, {"judge": judge}]}
        configs = [JudgingConfig.model_validate({"judge": each}) for each in (judge, ensemble)]
        both = [config.with_world("intransitive", 7) for config in configs]
        found = [config.judges[-1] for config in both]
        assert both[1].judges[0].kind == "verifier"
        return [(each.task, each.seed) for each in found]

    assert filled() == [("intransitive", 7)] * 2
    assert filled(task="transitive") == [("transitive", 7)] * 2
    assert filled(seed=0) == [("intransitive", 0)] * 2


def test_what_no_run_has_filled_in_is_the_transitive_task() -> None:
    group = world_group(5, (3, 40, 200))
    assert judge(None, group) == judge("transitive", group)
