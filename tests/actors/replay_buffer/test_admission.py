"""Admission by hand: every expected number is worked out from the bound, not read off the code."""

from __future__ import annotations

import json

import pytest

from actors.errors import RunError, UsageError
from actors.replay_buffer.admission import Admission, Grant
from actors.replay_buffer.config import ReplayConfig


def admission(total_updates: int | None = None, **settings: object) -> Admission:
    settings = {"prompts_per_update": 2, "lease_seconds": 10.0} | settings
    return Admission(ReplayConfig(**settings), total_updates)


def indices(grants: list[Grant]) -> list[int]:
    return [grant.index for grant in grants]


def judge(state: Admission, grants: list[Grant], version: int = 0) -> None:
    for grant in grants:
        assert state.generated(grant.index, grant.attempt)
        assert state.judged(grant.index, grant.attempt, version, version)


@pytest.mark.parametrize("order", ["lease", "ready"])
@pytest.mark.parametrize(
    ("staleness", "per_publish", "leases"), [(0, 1, 2), (1, 1, 4), (3, 1, 8), (0, 3, 6), (2, 2, 12)]
)
def test_generation_runs_ahead_by_the_staleness_bound_and_no_further(order, staleness, per_publish, leases):
    """(v + S + 1) * k * b leases at v = 0, with b = 2."""
    state = admission(order=order, max_staleness=staleness, updates_per_publish=per_publish)
    assert len(state.grant(100, now=0.0)) == leases
    assert state.grant(100, now=0.0) == []


def test_min_version_is_the_version_trained_at_consumption_less_the_bound():
    """b = 2, S = 1: leases 0-1 are for version 0, 2-3 for 1, 4-5 for 2, 6-7 for 3."""
    state = admission(max_staleness=1)
    grants = state.grant(100, now=5.0)
    assert [(grant.index, grant.min_version, grant.deadline) for grant in grants] == [(i, 0, 15.0) for i in range(4)]
    judge(state, grants)
    for version, expected in ((1, [(4, 1), (5, 1)]), (2, [(6, 2), (7, 2)])):
        assert state.take() is not None
        state.published(version)
        assert [(grant.index, grant.min_version) for grant in state.grant(100, now=5.0)] == expected


def test_leases_wait_for_the_published_version_not_the_trained_one():
    state = admission(max_staleness=1)
    judge(state, state.grant(4, now=0.0))
    assert state.take() is not None
    assert state.take() is not None
    assert state.training_version == 2
    assert state.grant(100, now=0.0) == []
    state.published(2)
    assert [(grant.index, grant.min_version) for grant in state.grant(100, now=0.0)] == [(4, 1), (5, 1), (6, 2), (7, 2)]


def test_several_updates_train_one_version():
    """k = 2: updates 0 and 1 train version 0, updates 2 and 3 version 1."""
    state = admission(max_staleness=1, updates_per_publish=2)
    judge(state, state.grant(8, now=0.0))
    takes = [state.take() for _ in range(4)]
    assert [(take.update, take.version, take.staleness) for take in takes] == [
        (0, 0, (0, 0)), (1, 0, (0, 0)), (2, 1, (1, 1)), (3, 1, (1, 1)),
    ]  # fmt: skip


def test_lease_order_waits_for_its_own_leases():
    state = admission(max_staleness=1)
    grants = state.grant(4, now=0.0)
    judge(state, [grants[3], grants[2], grants[1]])
    assert state.take() is None
    judge(state, [grants[0]])
    assert state.take().indices == (0, 1)
    assert state.take().indices == (2, 3)


def test_ready_order_takes_the_oldest_ready_groups():
    state = admission(max_staleness=2, order="ready")
    first = state.grant(6, now=0.0)
    judge(state, first[3:5])
    assert state.take().indices == (3, 4)
    state.published(1)
    judge(state, state.grant(1, now=0.0), version=1)
    judge(state, [first[5], first[0]], version=0)
    assert state.take().indices == (0, 5)


def test_ready_order_discards_an_overtaken_straggler_and_offers_its_prompt_again():
    """b = 1, S = 0: lease 0 of version 0 comes back when update 1 trains version 1."""
    state = admission(prompts_per_update=1, order="ready", updates_per_publish=2, max_staleness=0, max_reuse=2)
    slow, fast = state.grant(2, now=0.0)
    judge(state, [fast])
    assert state.take().indices == (1,)
    assert state.take().indices == (1,), "reuse fills what generation lacks"
    state.published(1)
    judge(state, [slow], version=0)
    assert state.take() is None
    assert state.ledger()["returned"] == {"stale": 1}
    again = state.grant(1, now=0.0)
    assert [(grant.index, grant.attempt) for grant in again] == [(0, 1)]
    judge(state, again, version=1)
    take = state.take()
    assert (take.indices, take.staleness) == ((0,), (0,))


def test_a_group_is_consumed_at_most_max_reuse_times_and_fresh_ones_come_first():
    state = admission(prompts_per_update=1, order="ready", max_staleness=3, max_reuse=3)
    first, second = state.grant(2, now=0.0)
    judge(state, [first])
    assert state.take().indices == (0,)
    judge(state, [second])
    assert [state.take().indices for _ in range(3)] == [(1,), (0,), (1,)]
    assert state.training_version == 4, "S = 3: version-0 tokens are over the bound now"
    assert state.take() is None
    ledger = state.ledger()
    assert (ledger["trained"], ledger["reused"], ledger["dropped"]) == (2, 2, {})


def test_tokens_over_the_bound_are_refused_at_consumption_in_lease_order():
    """A generator that ignored `min_version` 1: at S = 0 update 1 needs tokens of version 1."""
    state = admission(prompts_per_update=1, max_staleness=0)
    judge(state, state.grant(1, now=0.0))
    assert state.take() is not None
    state.published(1)
    judge(state, state.grant(1, now=0.0), version=0)
    assert state.take() is None
    assert state.ledger()["returned"] == {"stale": 1}
    judge(state, state.grant(1, now=0.0), version=1)
    assert state.take().staleness == (0,)


def test_returned_leases_are_granted_again_before_new_ones_lowest_first():
    state = admission(max_staleness=3)
    grants = state.grant(5, now=0.0)
    assert state.returned(3, 0, "judge timeout")
    assert state.returned(1, 0, "judge timeout")
    again = state.grant(3, now=0.0)
    assert [(grant.index, grant.attempt) for grant in again] == [(1, 1), (3, 1), (5, 0)]
    assert [grant.min_version for grant in again] == [0, 0, 0]
    assert state.ledger()["returned"] == {"judge timeout": 2}
    judge(state, [grants[0]])


def test_answers_to_an_older_attempt_are_ignored_and_counted():
    state = admission()
    state.grant(1, now=0.0)
    assert state.expire(now=9.9) == []
    assert state.expire(now=10.0) == [0]
    again = state.grant(1, now=10.0)
    assert not state.generated(0, 0)
    assert not state.judged(0, 0, 0, 0)
    assert not state.returned(0, 0, "crash")
    judge(state, again)
    assert not state.judged(0, 1, 0, 0), "a duplicate"
    ledger = state.ledger()
    assert (ledger["late"], ledger["generated"], ledger["judged"]) == (4, 1, 1)
    assert ledger["returned"] == {"expired": 1}


def test_what_is_with_a_judge_is_not_lost_with_its_generator():
    state = admission()
    grants = state.grant(2, now=0.0)
    assert state.generated(0, 0)
    assert state.lost([0, 1, 99], "generator died") == [1]
    assert state.judged(grants[0].index, grants[0].attempt, 0, 0)


def test_a_lease_that_waits_on_purpose_does_not_expire_and_has_its_whole_time_afterwards():
    state = admission(prompts_per_update=2)
    first, _ = state.grant(2, now=0.0)
    assert state.generated(0, first.attempt)
    assert state.hold(0, first.attempt)
    assert state.expire(now=1000.0) == [1]
    assert state.release(0, first.attempt, now=1000.0)
    assert state.expire(now=1009.0) == []
    assert state.expire(now=1010.0) == [0]
    assert state.ledger()["returned"] == {"expired": 2}


def test_holding_a_lease_that_has_moved_on_is_late():
    state = admission(prompts_per_update=1)
    (old,) = state.grant(1, now=0.0)
    assert state.expire(now=10.0) == [0]
    assert not state.hold(0, old.attempt)
    assert not state.release(0, old.attempt, now=10.0)
    assert state.ledger()["late"] == 2
    state.grant(1, now=10.0)
    assert state.expire(now=20.0) == [0], "the new attempt is not held"


def test_a_lease_that_was_held_when_the_run_ended_is_granted_again_and_not_held():
    state = admission(prompts_per_update=1)
    (lease,) = state.grant(1, now=0.0)
    state.hold(0, lease.attempt)
    resumed = admission(prompts_per_update=1)
    resumed.load_state_dict(json.loads(json.dumps(state.state_dict())))
    (again,) = resumed.grant(1, now=0.0)
    assert (again.index, again.attempt) == (0, 1)
    assert resumed.expire(now=10.0) == [0]


def test_an_update_goes_on_without_a_lease_that_failed_for_good():
    state = admission(max_staleness=0, max_attempts=2)
    grants = state.grant(2, now=0.0)
    judge(state, grants[1:])
    state.returned(0, 0, "judge timeout")
    state.grant(1, now=0.0)
    assert state.take() is None
    state.returned(0, 1, "malformed answer")
    assert state.take().indices == (1,)
    ledger = state.ledger()
    assert (ledger["returned"], ledger["dropped"]) == ({"judge timeout": 1}, {"malformed answer": 1})


def test_failures_are_counted_by_kind_and_the_saved_state_stays_small():
    """A judge that raised another text each time made a ledger, and checkpoints, of all these texts."""
    state = admission(max_staleness=0, max_attempts=2000)
    for attempt in range(100):
        state.grant(1, now=0.0)
        state.returned(0, attempt, f"the judge raised ValueError: {attempt} of prompt 'a:{attempt}' " + "x" * 200_000)
    (kind,) = state.ledger()["returned"]
    assert kind.startswith("the judge raised ValueError: # of prompt # xxx")
    assert state.ledger()["returned"][kind] == 100
    assert len(json.dumps(state.state_dict())) < 2000


def test_whole_reasons_that_an_older_version_saved_are_counted_by_kind():
    state = admission(max_staleness=0, max_attempts=11)
    for attempt in range(11):
        state.grant(1, now=0.0)
        state.returned(0, attempt, "expired")
    saved = state.state_dict()
    saved["returned"] = {"expired": 2, "x" * 200_000: 3, "bad pair 1": 1, "bad pair 2": 4}
    saved["dropped"] = {"bad pair 3": 1}
    state.load_state_dict(json.loads(json.dumps(saved)))
    assert state.ledger()["returned"] == {"expired": 2, "x" * 119 + "…": 3, "bad pair #": 5}
    assert state.ledger()["dropped"] == {"bad pair #": 1}


def test_an_update_without_any_group_is_empty_and_the_run_goes_on():
    state = admission(max_staleness=0, max_attempts=1)
    assert state.lost(indices(state.grant(2, now=0.0)), "generator died") == [0, 1]
    take = state.take()
    assert (take.update, take.indices, take.staleness) == (0, (), ())
    assert state.ledger()["empty_updates"] == 1
    state.published(1)
    judge(state, state.grant(2, now=0.0), version=1)
    assert state.take().indices == (2, 3)


@pytest.mark.parametrize("order", ["lease", "ready"])
def test_no_lease_is_granted_beyond_the_last_update(order):
    state = admission(total_updates=3, max_staleness=4, order=order)
    grants = state.grant(100, now=0.0)
    assert len(grants) == 6
    judge(state, grants)
    assert [state.take().update for _ in range(3)] == [0, 1, 2]
    assert state.take() is None
    state.published(3)
    assert state.grant(100, now=0.0) == []


def test_ready_order_replaces_a_prompt_dropped_for_good_by_the_next_one():
    state = admission(total_updates=1, order="ready", max_attempts=1)
    state.grant(2, now=0.0)
    state.returned(0, 0, "judge timeout")
    assert indices(state.grant(2, now=0.0)) == [2]


@pytest.mark.parametrize("version", [0, 3])
def test_a_version_may_not_go_back_nor_lead_the_learner(version):
    state = admission(max_staleness=1)
    judge(state, state.grant(4, now=0.0))
    state.take()
    state.published(1)
    state.published(1)
    state.take()
    with pytest.raises(RunError, match=f"version {version} cannot be published after 2 updates.*at least 1.*at most 2"):
        state.published(version)


def test_tokens_of_a_version_that_does_not_exist_stop_the_run():
    state = admission()
    state.grant(1, now=0.0)
    with pytest.raises(RunError, match=r"lease 0 .* policy version 1, but the learner has made versions up to 0"):
        state.judged(0, 0, 0, 1)


def test_reuse_that_the_bound_rules_out_is_refused_at_construction():
    """S = 1, k = 2: version-0 tokens may be used in updates 0 to 3."""
    admission(order="ready", max_staleness=1, updates_per_publish=2, max_reuse=4)
    with pytest.raises(UsageError, match=r"max_reuse 5 .* max_staleness 1 and updates_per_publish 2 .* 4 updates"):
        admission(order="ready", max_staleness=1, updates_per_publish=2, max_reuse=5)


def test_a_restart_grants_again_what_was_in_flight_and_keeps_the_rest():
    state = admission(max_staleness=1, max_attempts=1)
    grants = state.grant(4, now=0.0)
    judge(state, grants[:3])
    assert state.take().indices == (0, 1)
    restored = admission(max_staleness=1, max_attempts=1)
    restored.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert not restored.judged(3, 0, 0, 0), "an answer from before the restart"
    assert (restored.updates, restored.version, restored.buffered, restored.in_flight) == (1, 0, 1, 0)
    assert restored.ledger()["returned"] == {"restart": 1}
    again = restored.grant(4, now=0.0)
    assert [(grant.index, grant.attempt) for grant in again] == [(3, 1)], "a restart is nobody's failure"
    judge(restored, again)
    assert restored.take().indices == (2, 3)


def test_a_smaller_bound_after_a_restart_is_kept_too():
    state = admission(prompts_per_update=1, max_staleness=2)
    judge(state, state.grant(3, now=0.0))
    state.take()
    state.published(1)
    restored = admission(prompts_per_update=1, max_staleness=0)
    restored.load_state_dict(state.state_dict())
    assert restored.take() is None
    again = restored.grant(10, now=0.0)
    assert [(grant.index, grant.min_version) for grant in again] == [(1, 1)], "lease 2 waits for version 2"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"prompts_per_update": 3}, "prompts_per_update is 3, .* saved with 2"),
        ({"updates_per_publish": 2}, "updates_per_publish is 2, .* saved with 1"),
        ({"order": "ready"}, "order is 'ready', .* saved with 'lease'"),
    ],
)
def test_settings_on_which_the_saved_leases_rest_may_not_change(changed, text):
    state = admission().state_dict()
    with pytest.raises(UsageError, match=text):
        admission(**changed).load_state_dict(state)


def test_a_run_cannot_be_resumed_with_fewer_updates_than_it_has_done():
    state = admission(max_staleness=1)
    judge(state, state.grant(4, now=0.0))
    state.take()
    state.take()
    with pytest.raises(UsageError, match="updates 1 is less than the 2"):
        admission(total_updates=1).load_state_dict(state.state_dict())
