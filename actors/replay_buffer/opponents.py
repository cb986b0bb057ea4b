"""Decide when to draw a group's opponents: late enough to be fresh, as early as their staleness bound allows.

A pure schedule over lease indices and versions. Must not depend on a clock, tasks, generators or judges.

The bound is that of `admission.py`, but tighter. In lease order an update that trains version floor(i/B) consumes the
group of lease i, where B = prompts per version. With S' = `OpponentConfig.max_staleness`, its opponents may be drawn
once the published version

    v >= floor(i/B) - S'        with        min_version = max(0, floor(i/B) - S')

Versions never decrease along a completion, so every opponent token is at most S' versions old when consumed.

No deadlock. Once the version that an update trains is published, the opponents of all its groups may be drawn. With
S' >= 1, opponents for the next version are drawn while this one is trained.
"""

from actors.records import Group


class OpponentScheduler:
    """Groups of the policy's completions that wait until their opponents may be drawn.

    `max_staleness`: S' (versions). The schedule holds in lease order, for S' at most `replay.max_staleness`.
    """

    def __init__(self, prompts_per_version: int, max_staleness: int) -> None:
        self._prompts_per_version = prompts_per_version
        self._max_staleness = max_staleness
        self._waiting: dict[int, Group] = {}

    def __len__(self) -> int:
        """Return the number of groups whose opponents may not be drawn yet."""
        return len(self._waiting)

    def hold(self, group: Group) -> None:
        """Keep `group` until it is due; a later attempt of its lease replaces it."""
        self._waiting[group.lease.index] = group

    def min_version(self, index: int) -> int:
        """Return the oldest policy version that may sample opponents for lease `index`."""
        return max(0, index // self._prompts_per_version - self._max_staleness)

    def due(self, version: int) -> list[tuple[Group, int]]:
        """Hand out the groups whose opponents may be drawn at published `version`, with their `min_version`.

        Groups that are consumed first come first.
        """
        indices = sorted(index for index in self._waiting if self.min_version(index) <= version)
        return [(self._waiting.pop(index), self.min_version(index)) for index in indices]
