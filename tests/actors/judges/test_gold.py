"""The embedded world as judge: its scores, its preferences, and what a tie is there."""

from __future__ import annotations

import asyncio
from itertools import permutations

import pytest

from actors.data.config import PromptConfig
from actors.data.prompts import PromptSource
from actors.errors import UsageError
from actors.judges import make_judge
from actors.judges.config import GoldJudgeConfig
from actors.records import Completion, Group, Judgement, Lease
from actors.world import World, response_tokens, tokenizer

EOS = tokenizer().eos_token_id


def group_of(prompt_index: int, responses: tuple[int, ...]) -> Group:
    """A group of the world's own responses, by their number."""
    prompt = PromptSource(PromptConfig(source="world", shuffle=False), tokenizer()).prompt(prompt_index)
    completions = []
    for row in responses:
        ids = [int(token) for token in response_tokens()[row]]
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        zeros = (0,) * len(ids)
        completions.append(Completion(tuple(ids), (-1.0,) * len(ids), zeros, tokenizer().decode(ids), EOS in ids))
    return Group(Lease(0, 0, prompt, 0, 60.0), tuple(completions))


def judge(task: str, *groups: Group) -> list[Judgement]:
    return asyncio.run(make_judge(GoldJudgeConfig(), task=task, seed=0).judge(groups))


def test_the_transitive_task_is_scored_with_the_worlds_reward_and_nothing_else() -> None:
    group = group_of(5, (3, 40, 200))
    (judgement,) = judge("transitive", group)
    assert judgement.scores == World("transitive", 0).scores(group.lease.prompt, group.completions)
    assert len(set(judgement.scores)) > 1
    assert judgement.preferences is None


def test_the_intransitive_task_is_scored_with_the_mean_preference_over_the_others() -> None:
    group = group_of(2, (3, 40, 200))
    (judgement,) = judge("intransitive", group)
    p = World("intransitive", 0).preferences(group.lease.prompt, group.completions)
    assert judgement.preferences == p
    expected = ((p[0][1] + p[0][2]) / 2, (p[1][0] + p[1][2]) / 2, (p[2][0] + p[2][1]) / 2)
    assert judgement.scores == pytest.approx(expected)
    assert sum(judgement.scores) == pytest.approx(1.5)  # P(i > j) + P(j > i) = 1 over three pairs, halved


def test_scores_follow_their_completions_when_these_change_places() -> None:
    responses = (3, 40, 200)
    for task in ("transitive", "intransitive"):
        (reference,) = judge(task, group_of(9, responses))
        for order in permutations(range(3)):
            (permuted,) = judge(task, group_of(9, tuple(responses[i] for i in order)))
            assert permuted.scores == pytest.approx([reference.scores[i] for i in order])


def test_groups_are_answered_in_order() -> None:
    groups = [group_of(index, (3, 40)) for index in range(4)]
    assert judge("transitive", *groups) == [judge("transitive", group)[0] for group in groups]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown world task 'chess'"):
        make_judge(GoldJudgeConfig(), task="chess")
