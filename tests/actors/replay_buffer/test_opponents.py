"""When opponents may be drawn, against a slow walk through the updates that consume them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.records import Group, Lease
from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.opponents import OpponentScheduler
from tests.fakes.generators import FakePrompts, group_of


def group(index: int, attempt: int = 0) -> Group:
    return group_of(Lease(index, attempt, FakePrompts().prompt(index), 0, 60.0), (0,), (0,))


def scheduler(max_staleness: int, *, per_update: int = 2, per_publish: int = 1) -> OpponentScheduler:
    replay = ReplayConfig(prompts_per_update=per_update, updates_per_publish=per_publish)
    return OpponentScheduler(replay.prompts_per_version, max_staleness)


def due(waiting: OpponentScheduler, version: int) -> list[tuple[int, int]]:
    return [(each.lease.index, min_version) for each, min_version in waiting.due(version)]


def test_with_bound_one_opponents_are_drawn_one_version_before_they_are_consumed() -> None:
    waiting = scheduler(1)
    for index in (7, 3, 0, 4, 5, 2, 1):
        waiting.hold(group(index))
    # Two prompts per version: leases 0 and 1 are trained as version 0, 2 and 3 as version 1, 4 and 5 as version 2.
    assert due(waiting, 0) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert due(waiting, 0) == []
    assert due(waiting, 1) == [(4, 1), (5, 1)]
    assert len(waiting) == 1
    assert due(waiting, 2) == [(7, 2)]


def test_with_bound_zero_only_the_version_that_is_trained_may_sample_them() -> None:
    waiting = scheduler(0, per_update=1, per_publish=3)
    for index in range(6):
        waiting.hold(group(index))
    assert due(waiting, 0) == [(0, 0), (1, 0), (2, 0)]
    assert due(waiting, 1) == [(3, 1), (4, 1), (5, 1)]


def test_a_group_that_comes_late_is_due_at_once_by_any_version_within_the_bound() -> None:
    waiting = scheduler(2)
    waiting.hold(group(6))
    assert due(waiting, 3) == [(6, 1)]


def test_the_group_handed_out_is_the_one_that_was_left() -> None:
    waiting = scheduler(0)
    waiting.hold(group(0, attempt=2))
    ((handed, _),) = waiting.due(0)
    assert handed == group(0, attempt=2)


@given(
    per_update=st.integers(1, 4),
    per_publish=st.integers(1, 3),
    max_staleness=st.integers(0, 4),
    arrivals=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    skips=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_opponents_are_drawn_once_as_early_as_the_bound_allows_and_never_too_late_to_train(
    per_update: int, per_publish: int, max_staleness: int, arrivals: list[int], skips: list[bool]
) -> None:
    """Group i comes while version `arrivals[i]` is out, or before; versions may be skipped by slow generators."""
    waiting = scheduler(max_staleness, per_update=per_update, per_publish=per_publish)
    trained = {index: (index // per_update) // per_publish for index in range(len(arrivals))}  # update, then version
    drawn: dict[int, int] = {}
    last = max(trained.values())
    for version in range(last + 1):
        for index, arrival in enumerate(arrivals):
            if min(arrival, trained[index]) == version:
                waiting.hold(group(index))
        if skips[version % len(skips)] and version < last:
            continue
        handed = due(waiting, version)
        assert [index for index, _ in handed] == sorted(index for index, _ in handed)
        for index, min_version in handed:
            assert index not in drawn, "each group's opponents are drawn once"
            drawn[index] = version
            assert 0 <= min_version <= version, "a generator that has the published version may sample them"
            assert trained[index] - min_version <= max_staleness, "no token can be over the bound"
            assert min_version == 0 or trained[index] - (min_version - 1) > max_staleness, "the bound is used up"
        # What may be drawn is drawn: whatever is left would be over the bound by this very version.
        held = {i for i, arrival in enumerate(arrivals) if min(arrival, trained[i]) <= version} - set(drawn)
        assert len(waiting) == len(held)
        assert all(trained[index] - version > max_staleness for index in held)
    assert sorted(drawn) == list(range(len(arrivals))), "when an update's version is out, its groups can be completed"
