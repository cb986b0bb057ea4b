"""The buffer keeps contents; what it may grant and take is tested with `admission.py`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from actors.errors import RunError, UsageError
from actors.records import Judgement, Prompt
from actors.replay_buffer.buffer import ReplayBuffer, group_from_dict, group_to_dict
from actors.replay_buffer.config import ReplayConfig
from tests.fakes.generators import FakePrompts, group_of, judged_group


def buffer(total_updates: int | None = None, **settings: object) -> ReplayBuffer:
    settings = {"prompts_per_update": 2, "lease_seconds": 10.0} | settings
    return ReplayBuffer(ReplayConfig(**settings), FakePrompts(), total_updates)


def test_a_lease_carries_the_prompt_at_its_own_position_every_time_it_is_granted():
    replay = buffer()
    first = replay.lease(2, now=0.0)
    assert [lease.prompt.id for lease in first] == ["fake:0", "fake:1"]
    replay.returned(1, 0, "judge timeout")
    again, new = replay.lease(2, now=1.0)
    assert (again.index, again.attempt, again.prompt.id, again.deadline) == (1, 1, "fake:1", 11.0)
    assert (new.index, new.prompt.id) == (2, "fake:2")


@pytest.mark.parametrize("draw", ["all", "policy"])
def test_a_lease_says_what_it_was_granted_to_draw(draw):
    assert [lease.draw for lease in buffer().lease(2, now=0.0, draw=draw)] == [draw, draw]


def test_a_group_that_waits_for_opponents_keeps_its_lease_until_it_is_released():
    replay = buffer()
    first, second = replay.lease(2, now=0.0)
    group = group_of(first, (0,), (0,))
    assert replay.generated(group.lease.index, group.lease.attempt)
    assert replay.hold(group.lease.index, group.lease.attempt)
    assert replay.expire(now=50.0) == [second.index]
    assert replay.release(group.lease.index, group.lease.attempt, now=50.0)
    assert replay.expire(now=60.0) == [first.index]
    assert not replay.hold(group.lease.index, group.lease.attempt)
    assert not replay.release(group.lease.index, group.lease.attempt, now=60.0)


def test_a_batch_holds_the_groups_that_were_added_with_the_staleness_of_their_oldest_token():
    replay = buffer(max_staleness=1)
    leases = replay.lease(4, now=0.0)
    for lease in leases[:2]:
        replay.add(judged_group(lease, (0,), (0, 0)))
    assert replay.batch().staleness == (0, 0)
    replay.published(1)
    third = judged_group(leases[2], (1, 1), (1,))
    fourth = judged_group(leases[3], (1,), (0, 1))
    assert replay.generated(fourth.lease.index, fourth.lease.attempt)
    assert replay.add(fourth)
    assert replay.batch() is None
    assert replay.add(third)
    assert replay.ages() == [1, 0]
    batch = replay.batch()
    assert (batch.update, batch.version, batch.groups, batch.staleness) == (1, 1, (third, fourth), (0, 1))
    assert replay.ages() == []


def test_a_late_group_changes_nothing():
    replay = buffer(prompts_per_update=1, max_staleness=0)
    (old,) = replay.lease(1, now=0.0)
    assert replay.expire(now=10.0) == [0]
    (new,) = replay.lease(1, now=10.0)
    answer = judged_group(new, (0,), (0,))
    assert replay.add(answer)
    assert not replay.add(judged_group(old, (0, 0), (0,)))
    assert replay.batch().groups == (answer,)
    assert not replay.add(answer)
    assert replay.batch() is None


def test_completions_of_a_lease_are_awaited_until_they_come_or_it_is_dropped():
    replay = buffer(max_attempts=2)
    assert not replay.awaits(0)
    replay.lease(2, now=0.0)
    assert replay.generated(0, 0)
    assert [replay.awaits(index) for index in (0, 1)] == [False, True]
    replay.expire(now=10.0)  # also the one at the judge
    assert [replay.awaits(index) for index in (0, 1)] == [True, True]
    replay.lease(2, now=10.0)
    assert replay.generated(0, 1)
    assert [replay.awaits(index) for index in (0, 1)] == [False, True]
    replay.expire(now=20.0)
    assert [replay.awaits(index) for index in (0, 1)] == [False, False]


def test_leases_that_died_with_a_generator_are_granted_again():
    replay = buffer()
    leases = replay.lease(2, now=0.0)
    assert replay.generated(leases[0].index, leases[0].attempt)
    assert replay.lost([0, 1], "generator died") == [1]
    assert replay.in_flight == 1
    assert [lease.index for lease in replay.lease(1, now=0.0)] == [1]
    assert replay.ledger()["returned"] == {"generator died": 1}


def test_an_unjudged_group_is_refused():
    replay = buffer()
    (lease,) = replay.lease(1, now=0.0)
    with pytest.raises(ValueError, match="the group of lease 0 has no judgement"):
        replay.add(group_of(lease, (0,), (0,)))


def test_one_token_of_an_unmade_version_is_enough_to_stop_the_run():
    replay = buffer()
    (lease,) = replay.lease(1, now=0.0)
    with pytest.raises(RunError, match="policy version 3"):
        replay.add(judged_group(lease, (0, 0), (0, 3)))


def through_json(replay: ReplayBuffer, below: int | None = None) -> dict:
    """A state that was written and read again."""
    state = replay.state_dict(below=below)
    prompts = {group.lease.index: group.lease.prompt for group in state["groups"]}
    saved = json.loads(json.dumps(state | {"groups": [group_to_dict(group) for group in state["groups"]]}))
    return saved | {"groups": [group_from_dict(each, prompts[each["lease"]["index"]]) for each in saved["groups"]]}


def test_a_restart_brings_back_the_same_groups_bit_for_bit():
    replay = buffer(max_staleness=1)
    leases = replay.lease(4, now=0.0)
    group = judged_group(leases[0], (0, 0, 0), (0,))
    odd = replace(group.completions[0], logprobs=(-1e-300, -0.1 - 0.2, -1 / 3), finished=False, text='"\u2028é"')
    judgement = Judgement(scores=(0.1, 1 / 3), preferences=((0.5, 0.1), (0.9, 0.5)))
    said = (("assistant", "2+2?"), ("tool", "4"))
    drawn = replace(group.completions[1], opponent=True, given=((0, 1),), messages=said)
    group = replace(group, completions=(odd, drawn), judgement=judgement)
    replay.add(group)
    restored = buffer(max_staleness=1)
    restored.load_state_dict(through_json(replay))
    assert (restored.buffered, restored.in_flight) == (1, 0)
    (again,) = restored.lease(1, now=0.0)
    assert (again.index, again.attempt) == (1, 1)
    other = judged_group(again, (0,), (0,))
    restored.add(other)
    assert restored.batch().groups == (group, other)


def test_a_reused_group_survives_a_restart_between_its_uses():
    replay = buffer(prompts_per_update=1, order="ready", max_reuse=2)
    (lease,) = replay.lease(1, now=0.0)
    group = judged_group(lease, (0,), (0,))
    replay.add(group)
    assert replay.batch().groups == (group,)
    restored = buffer(prompts_per_update=1, order="ready", max_reuse=2)
    restored.load_state_dict(through_json(replay))
    assert restored.batch().groups == (group,)
    assert restored.batch() is None
    assert restored.state_dict()["groups"] == ()


def test_resuming_with_other_prompts_is_refused_by_name():
    (lease,) = buffer().lease(1, now=0.0)
    data = group_to_dict(judged_group(lease, (0,), (0,)))
    assert group_from_dict(data, lease.prompt) == judged_group(lease, (0,), (0,))
    with pytest.raises(UsageError, match="position 0 of the prompts holds 'other:7' now and held 'fake:0'"):
        group_from_dict(data, Prompt("other:7", (7,), "7"))
