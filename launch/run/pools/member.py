"""One generator as its pool sees it: what it holds, what it may still answer, and what it should not go on with.

Must not call the generator: `generator_pool.py` does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.records import GeneratorStatus, Lease
from launch.run.protocols import GeneratorPort
from launch.run.tasks import Signal

Key = tuple[int, int]
"""A lease's index, and the attempt at it."""


@dataclass(eq=False)
class Member:
    """One generator and its state as the pool sees it."""

    port: GeneratorPort
    version: int = -1
    """Last version that it acknowledged; -1 before the first."""
    outstanding: dict[Key, Lease] = field(default_factory=dict)
    """Leases granted to it and not answered."""
    unsent: list[Lease] = field(default_factory=list)
    """The part of `outstanding` that is not submitted yet."""
    dealt: Signal = field(default_factory=Signal)
    """Callback for new ones."""
    late: set[Key] = field(default_factory=set)
    """Attempts that expired, and that it still works on."""
    unwanted: list[Key] = field(default_factory=list)
    """Attempts that it should stop."""
    regretted: Signal = field(default_factory=Signal)
    """Callback for new ones."""
    status: GeneratorStatus | None = None

    def grant(self, leases: Iterable[Lease]) -> None:
        self.outstanding |= {(lease.index, lease.attempt): lease for lease in leases}

    def answered(self, key: Key) -> Lease | None:
        """Forget an attempt that ended; return its lease unless that has expired."""
        self.late.discard(key)
        return self.outstanding.pop(key, None)

    def expire(self, key: Key) -> None:
        """Take back an outstanding lease. One that was submitted may still be answered."""
        lease = self.outstanding.pop(key)
        if lease in self.unsent:
            self.unsent.remove(lease)
        else:
            self.late.add(key)

    def stop(self, index: int) -> None:
        """Let it work no longer on any attempt at lease `index`."""
        for key in [key for key in self.outstanding if key[0] == index]:
            self.expire(key)
        stopped = [key for key in self.late if key[0] == index]
        self.late.difference_update(stopped)
        if stopped:
            self.unwanted += stopped
            self.regretted.notify()

    def clear(self) -> None:
        """Forget everything, because its process died."""
        for held in (self.outstanding, self.unsent, self.late, self.unwanted):
            held.clear()
        self.version = -1
