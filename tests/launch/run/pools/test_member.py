"""What a generator holds, as its pool sees it: what expires, what is stopped, what a death takes."""

from actors.records import Lease, Prompt
from launch.run.pools.member import Member
from tests.fakes.generators import FakeGenerator


def lease(index: int, attempt: int = 0) -> Lease:
    return Lease(index, attempt, Prompt(f"p:{index}", (1,), ""), 0, 60.0)


def member(*leases: Lease) -> Member:
    made = Member(FakeGenerator("a"))
    made.grant(leases)
    return made


def test_a_submitted_lease_that_expires_may_still_be_answered_and_an_unsent_one_is_never_sent() -> None:
    sent, unsent = lease(0), lease(1)
    held = member(sent, unsent)
    held.unsent.append(unsent)
    held.expire((0, 0))
    held.expire((1, 0))
    assert held.outstanding == {}
    assert held.unsent == []
    assert held.late == {(0, 0)}


def test_every_attempt_at_a_lease_is_stopped_and_no_other() -> None:
    held = member(lease(3), lease(3, 1), lease(4))
    held.expire((3, 0))
    held.stop(3)
    assert sorted(held.unwanted) == [(3, 0), (3, 1)]
    assert list(held.outstanding) == [(4, 0)]
    assert held.late == set()


def test_an_answer_ends_its_attempt_late_or_not() -> None:
    held = member(lease(0), lease(1))
    held.expire((0, 0))
    assert held.answered((0, 0)) is None
    assert held.answered((1, 0)) == lease(1)
    held.stop(0)
    held.stop(1)
    assert held.unwanted == []


def test_a_death_takes_everything() -> None:
    held = member(lease(0), lease(1), lease(2))
    held.version = 5
    held.expire((0, 0))
    held.stop(1)
    held.clear()
    assert (held.outstanding, held.unsent, held.late, held.unwanted, held.version) == ({}, [], set(), [], -1)
