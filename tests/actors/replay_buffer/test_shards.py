"""Shards by hand: expected numbers are enumerated, not read off the code."""

from __future__ import annotations

import pytest

from actors.errors import RunError, UsageError
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.ledger import imbalance
from actors.replay_buffer.shards import Assembly, Shards
from tests.fakes.generators import FakePrompts, judged_group


def two_shards(**settings: object) -> tuple[Assembly, list[ReplayBuffer]]:
    """Two shards of two prompts each for every update."""
    shards = Shards(ReplayConfig(**({"prompts_per_update": 4, "lease_seconds": 10.0} | settings)), 2)
    return Assembly(shards), [shards.buffer(shard, FakePrompts()) for shard in range(2)]


def part_of(buffer: ReplayBuffer, limit: int = 2, version: int = 0) -> Batch | None:
    """Grant, answer and take."""
    for lease in buffer.lease(limit, now=0.0):
        buffer.add(judged_group(lease, (version,)))
    return buffer.batch()


def test_lease_i_belongs_to_shard_i_mod_d_under_a_number_of_its_own():
    shards = Shards(ReplayConfig(prompts_per_update=6), 3)
    assert [(shards.owner(i), shards.local(i)) for i in range(7)] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (0, 1),
        (1, 1),
        (2, 1),
        (0, 2),
    ]
    assert [shards.index(shard, local) for local in range(2) for shard in range(3)] == [0, 1, 2, 3, 4, 5]
    assert shards.each.prompts_per_update == 2


@pytest.mark.parametrize(("b", "k", "count"), [(4, 1, 4), (12, 2, 3), (8, 3, 2), (5, 1, 5), (6, 1, 1)])
def test_a_lease_has_the_same_update_and_version_in_its_shard_as_in_the_whole(b, k, count):
    shards = Shards(ReplayConfig(prompts_per_update=b, updates_per_publish=k), count)
    for i in range(10 * b * k):
        n, each = shards.local(i), shards.each
        assert n // each.prompts_per_update == i // b
        assert n // each.prompts_per_version == i // (b * k)


@pytest.mark.parametrize(
    ("b", "count", "text"),
    [
        (32, 5, "32 cannot be shared by 5 shards.*use 4 shards, or set replay.prompts_per_update to 30 or 35"),
        (2, 5, "2 cannot be shared by 5 shards.*use 2 shards, or set replay.prompts_per_update to 5"),
        (32, 0, "0 shards cannot hold any lease; there must be at least 1"),
    ],
)
def test_shards_that_cannot_have_equal_parts_are_refused_with_what_can(b, count, text):
    with pytest.raises(UsageError, match=text):
        Shards(ReplayConfig(prompts_per_update=b), count)


def test_a_batch_is_the_union_of_all_parts_by_lease():
    assembly, (even, odd) = two_shards()
    assert assembly.add(1, part_of(odd))
    assert assembly.missing == [0]
    assert assembly.batch() is None
    assert assembly.add(0, part_of(even))
    batch = assembly.batch()
    assert [group.lease.index for group in batch.groups] == [0, 1, 2, 3]
    assert [group.lease.prompt.id for group in batch.groups] == ["fake:0", "fake:1", "fake:2", "fake:3"]
    assert (batch.update, batch.version, batch.staleness) == (0, 0, (0, 0, 0, 0))
    assert assembly.batch() is None


def test_in_ready_order_a_batch_has_shard_after_shard():
    assembly, (even, odd) = two_shards(order="ready")
    leases = even.lease(2, now=0.0)
    for lease in reversed(leases):
        even.add(judged_group(lease, (0,)))
    assembly.add(0, even.batch())
    assembly.add(1, part_of(odd))
    assert [group.lease.index for group in assembly.batch().groups] == [0, 2, 1, 3]


def test_a_version_ends_with_the_last_part_of_its_last_update():
    """k = 2: version 0 has the updates 0 and 1. The even shard is two updates ahead before the odd one begins."""
    assembly, (even, odd) = two_shards(updates_per_publish=2, max_staleness=0)
    parts = [part_of(even), part_of(even)]
    assert [(part.update, part.version) for part in parts] == [(0, 0), (1, 0)]
    assert all(assembly.add(0, part) for part in parts)
    assembly.add(1, part_of(odd))
    assert (assembly.batch().update, assembly.training_version) == (0, 0)
    assert assembly.batch() is None
    assembly.add(1, part_of(odd))
    assert (assembly.batch().update, assembly.training_version) == (1, 1)


def test_a_shard_that_was_told_nothing_stops_at_the_bound_and_the_others_with_it():
    """S = 1 and two prompts of each version: (0 + 1 + 1) * 2 = 4 leases at version 0, and 6 at version 1."""
    assembly, (even, odd) = two_shards(max_staleness=1)
    for buffer, number in ((even, 0), (odd, 1)):
        assembly.add(number, part_of(buffer, limit=100))
        assembly.add(number, buffer.batch())
        assert buffer.lease(100, now=0.0) == []
    assert assembly.batch() is not None
    even.published(1)
    assert assembly.add(0, part_of(even, limit=100, version=1))
    assert assembly.batch() is not None
    assert (even.lease(100, now=0.0), odd.lease(100, now=0.0)) == ([], [])
    assert assembly.missing == [1]
    odd.published(2)  # the announcement of 1 never came
    assert [lease.min_version for lease in odd.lease(100, now=0.0)] == [1, 1, 2, 2]


def test_an_announcement_before_the_shard_has_given_its_own_part_is_an_error():
    """No version can be published without the parts of all shards, so this one is of another run."""
    _, (even, _) = two_shards()
    with pytest.raises(RunError, match="version 1 cannot be published after 0 updates"):
        even.published(1)


def test_a_part_that_comes_twice_is_ignored_and_one_that_is_missing_is_named():
    assembly, (even, _) = two_shards(max_staleness=1)
    first, second = part_of(even, limit=4), even.batch()
    with pytest.raises(RunError, match="shard 0 gave its part of update 1, but its part of update 0 has not come"):
        assembly.add(0, second)
    assert [assembly.add(0, part) for part in (first, first, second, first)] == [True, False, True, False]
    assert assembly.wanted(0) == 2


def test_the_ledger_of_the_whole_is_the_sum_and_says_what_waits_for_other_shards():
    assembly, (even, odd) = two_shards(max_attempts=2)
    assembly.add(0, part_of(even))
    first, second = odd.lease(2, now=0.0)
    odd.returned(first.index, 0, "judge timeout")
    even_again, *_ = even.lease(1, now=0.0)
    even.returned(even_again.index, 0, "judge timeout")
    assert odd.expire(now=20.0) == [second.index]
    (third,) = odd.lease(1, now=20.0)
    odd.returned(third.index, 1, "judge timeout")
    ledger = assembly.ledger([even, odd])
    assert imbalance(ledger) == ""
    assert (ledger["offered"], ledger["leased"]) == (5, 6)
    assert (ledger["trained"], ledger["given"], ledger["waiting"]) == (2, 2, 2)
    assert ledger["returned"] == {"judge timeout": 2, "expired": 1}
    assert ledger["dropped"] == {"judge timeout": 1}


def test_an_update_is_empty_only_if_all_its_parts_are():
    assembly, (even, odd) = two_shards(max_attempts=1, max_staleness=1)
    for lease in even.lease(4, now=0.0):
        even.returned(lease.index, 0, "judge timeout")
    for lease in odd.lease(4, now=0.0):
        if lease.index < 2:
            odd.add(judged_group(lease, (0,)))
        else:
            odd.returned(lease.index, 0, "judge timeout")
    for number, buffer in ((0, even), (1, odd)):
        assert assembly.add(number, buffer.batch())
        assert assembly.add(number, buffer.batch())
    assert [len(assembly.batch().groups), len(assembly.batch().groups)] == [2, 0]
    assert [buffer.ledger()["empty_updates"] for buffer in (even, odd)] == [2, 1]
    assert assembly.ledger([even, odd])["empty_updates"] == 1


def test_a_part_that_waits_survives_a_restart():
    assembly, buffers = two_shards()
    assembly.add(0, part_of(buffers[0]))
    state = assembly.state_dict(buffers)
    restored, new = two_shards()
    restored.load_state_dict(state, new)
    assert (restored.missing, restored.wanted(0)) == ([1], 1)
    restored.add(1, part_of(new[1]))
    assert [group.lease.index for group in restored.batch().groups] == [0, 1, 2, 3]


def test_a_state_of_other_shards_or_of_different_moments_is_refused():
    assembly, buffers = two_shards()
    before = assembly.state_dict(buffers)
    assembly.add(0, part_of(buffers[0]))
    after = assembly.state_dict(buffers)
    one = Assembly(Shards(ReplayConfig(prompts_per_update=4), 1))
    with pytest.raises(UsageError, match="the run to resume has 2 shards, not 1"):
        one.load_state_dict(before, [])
    mixed = before | {"buffers": after["buffers"]}
    restored, new = two_shards()
    with pytest.raises(UsageError, match="shard 0 was saved before update 1 and at version 0, but the learner waits"):
        restored.load_state_dict(mixed, new)
