"""When the opponents of a group are drawn: as late as they must be to be fresh, as early as they may be. Pure.

A decision over lease indices and versions. It must not know a clock, tasks, generators or judges.

The law is admission's (`admission.py`) with a tighter bound. In lease order the group of lease i is consumed by an
update that trains version floor(i/B), B = prompts per version. With S' = `OpponentConfig.max_staleness`, its opponents
may be drawn once the published version

    v >= floor(i/B) - S'        with        min_version = max(0, floor(i/B) - S')

and versions never decrease along a completion: every token of theirs is at most S' versions old when consumed.

No deadlock. Once the version that an update trains is published, the opponents of all its groups may be drawn. With
S' >= 1 those of the next version's groups are drawn while this one is trained.
"""

from __future__ import annotations

from actors.errors import UsageError
from actors.records import Group
from actors.replay_buffer.config import ReplayConfig


class OpponentDesk:
    """Holds groups of the policy's completions until their opponents may be drawn.

    `max_staleness`: S', in versions; at most `replay.max_staleness`.
    Raises UsageError for settings under which the bound cannot be kept.
    """

    def __init__(self, replay: ReplayConfig, max_staleness: int) -> None:
        if replay.order != "lease":
            raise UsageError(
                f"opponent.max_staleness {max_staleness} needs replay.order 'lease', in which it is certain which "
                f"version consumes a prompt, and that is {replay.order!r}; set replay.order to 'lease', or leave "
                "opponent.max_staleness unset"
            )
        if max_staleness > replay.max_staleness:
            raise UsageError(
                f"opponent.max_staleness {max_staleness} is above replay.max_staleness {replay.max_staleness}, which "
                "holds for every token; lower the first or raise the second"
            )
        self._prompts_per_version = replay.prompts_per_version
        self._max_staleness = max_staleness
        self._waiting: dict[int, Group] = {}

    def __len__(self) -> int:
        """Groups whose opponents may not be drawn yet."""
        return len(self._waiting)

    def hold(self, group: Group) -> None:
        """Keeps `group` until it is due; a later attempt of its lease takes its place."""
        self._waiting[group.lease.index] = group

    def min_version(self, index: int) -> int:
        """The oldest policy version that may sample opponents of the group of lease `index`."""
        return max(0, index // self._prompts_per_version - self._max_staleness)

    def due(self, version: int) -> list[tuple[Group, int]]:
        """Hands out the groups whose opponents may be drawn at published `version`, those consumed first before others.

        Returns:
            Each with the oldest version that may sample them.
        """
        indices = sorted(index for index in self._waiting if self.min_version(index) <= version)
        return [(self._waiting.pop(index), self.min_version(index)) for index in indices]
