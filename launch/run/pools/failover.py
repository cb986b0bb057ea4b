"""Interchangeable actors: a call goes to the least busy one, and the others take over from one that dies.

Must not know what the actors do.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from actors.errors import RunError

T = TypeVar("T")
R = TypeVar("R")


class Failover(Generic[T]):
    """`what` names one of `members`, as in "judge"; `on_message` gets each death while others are left."""

    def __init__(self, what: str, members: Sequence[T], on_message: Callable[[str], None]) -> None:
        self.members = list(members)
        self._what, self._on_message = what, on_message
        self._busy = [0] * len(self.members)
        self._alive = [True] * len(self.members)

    async def call(self, work: Callable[[T], Awaitable[R]]) -> R:
        """Await `work` of the member with the fewest calls in progress.

        A member whose call raises RunError has died for good. Raises RunError when the last one has.
        """
        while True:
            chosen = min((n for n, alive in enumerate(self._alive) if alive), key=lambda n: self._busy[n])
            self._busy[chosen] += 1
            try:
                return await work(self.members[chosen])
            except RunError as error:
                if sum(self._alive) - self._alive[chosen] == 0:
                    raise
                if self._alive[chosen]:
                    self._alive[chosen] = False
                    self._on_message(f"{self._what} {chosen}: {error}; {sum(self._alive)} left")
            finally:
                self._busy[chosen] -= 1
