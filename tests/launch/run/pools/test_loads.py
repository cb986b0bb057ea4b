"""Who holds the fewest leases, against a slow path that looks at everyone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.run.pools.loads import Loads


def test_the_member_with_the_fewest_is_taken_and_among_equals_the_one_that_waited_longest() -> None:
    loads = Loads[str](3)
    for name in "abc":
        loads.join(name)
    loads.set("b", 2)
    assert [loads.take() for _ in range(7)] == ["a", "c", "a", "c", "b", "a", "c"]
    assert loads.room == 0
    with pytest.raises(LookupError):
        loads.take()


def test_who_left_is_not_taken_and_comes_back_with_what_it_holds() -> None:
    loads = Loads[str](2)
    loads.join("a")
    loads.leave("a")
    loads.leave("a")
    loads.set("a", 1)
    assert loads.room == 0
    loads.join("a", 1)
    loads.join("b")
    assert loads.room == 3
    assert [loads.take(), loads.take(), loads.take()] == ["b", "a", "b"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "set", "take"]), st.integers(0, 5), st.integers(0, 4)), max_size=80
)


@given(STEPS)
def test_it_agrees_with_a_search_over_all_members(steps: list[tuple[str, int, int]]) -> None:
    loads, held = Loads[int](4), dict[int, int]()
    for step, member, number in steps:
        if step == "join":
            loads.join(member, number)
            held[member] = number
        elif step == "leave":
            loads.leave(member)
            held.pop(member, None)
        elif step == "set":
            loads.set(member, number)
            held |= {member: number} if member in held else {}
        elif loads.room:
            fewest = min(held.values())
            taken = loads.take()
            assert held[taken] == fewest
            held[taken] += 1
        assert loads.room == sum(4 - each for each in held.values())
