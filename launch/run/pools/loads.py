"""Count the leases of each generator, and find the least loaded one in constant time, for any number of generators.

Must not know what a lease or a generator is.
"""

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Loads(Generic[T]):
    """Loads between 0 and `most`. Among members with equal loads, the one that has had its load longest comes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[T, int] = {}
        self._by_load: defaultdict[int, dict[T, None]] = defaultdict(dict)
        self._fewest = 0  # no member holds fewer
        self._total = 0

    @property
    def room(self) -> int:
        """Return the number of further leases that all members together may hold."""
        return len(self._held) * self._most - self._total

    def join(self, member: T, held: int = 0) -> None:
        """Add a member that holds `held` leases."""
        self.leave(member)
        self._held[member] = held
        self._place(member, held)

    def leave(self, member: T) -> None:
        """Forget a member; nothing happens if it is none."""
        held = self._held.pop(member, None)
        if held is not None:
            self._by_load[held].pop(member)
            self._total -= held

    def set(self, member: T, held: int) -> None:
        """Change how many leases a member holds; nothing happens if it is none."""
        before = self._held.get(member)
        if before is None or before == held:
            return
        self._by_load[before].pop(member)
        self._total -= before
        self._held[member] = held
        self._place(member, held)

    def take(self) -> T:
        """Give one more lease to the member with the fewest, and return it. Raises LookupError without room."""
        if self.room <= 0:
            raise LookupError("no member has room")
        while not self._by_load[self._fewest]:
            self._fewest += 1
        member = next(iter(self._by_load[self._fewest]))
        self.set(member, self._fewest + 1)
        return member

    def _place(self, member: T, held: int) -> None:
        self._by_load[held][member] = None
        self._total += held
        self._fewest = min(self._fewest, held)
