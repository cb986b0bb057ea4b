"""The replay buffer: leases out, judged groups in, batches out, all within the staleness bound.

`admission.py` makes every decision, over indices; this module adds prompts and groups. Driven from one thread; its
state is JSON-able but for its groups. Must not depend on generators, judges or the learner.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from actors.errors import UsageError
from actors.records import Completion, Draw, Group, Judgement, Lease, Prompt, with_tuples
from actors.replay_buffer.admission import Admission
from actors.replay_buffer.config import ReplayConfig


class PromptOrder(Protocol):
    """The endless order in which prompts are offered. A position holds the same prompt after a resume."""

    def prompt(self, position: int) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One update's groups. Made by the replay buffer; read by pairing and learner."""

    update: int
    version: int
    """Policy version that the update trains: `update // updates_per_publish`."""
    groups: tuple[Group, ...]
    """Groups by lease index in lease order, oldest tokens first in ready order. Empty: nothing to train on."""
    staleness: tuple[int, ...]
    """`version` minus the oldest token version of each group; at most `max_staleness`."""


class ReplayBuffer(Admission):
    """Admission with the prompts and groups behind its indices; see `Admission` for `total_updates` and errors.

    Lease `i` is for the prompt at position `i` of `prompts`, however often it is granted.
    """

    def __init__(self, config: ReplayConfig, prompts: PromptOrder, total_updates: int | None = None) -> None:
        super().__init__(config, total_updates)
        self._prompts = prompts
        self._groups: dict[int, Group] = {}

    def lease(self, limit: int, now: float, draw: Draw = "all") -> list[Lease]:
        """Grant as many leases as the staleness bound allows, at most `limit`; deadlines count from `now` (seconds).

        With `draw` "policy", the caller must add the opponents to a group before `add`.
        """
        return [
            Lease(each.index, each.attempt, self._prompts.prompt(each.index), each.min_version, each.deadline, draw)
            for each in self.grant(limit, now)
        ]

    def in_time(self, group: Group) -> Group:
        """Return a late group as an answer to its lease's newer grant, if that still waits; else unchanged.

        If its tokens are too old, it is discarded like any other group: see `take`.
        """
        lease, entry = group.lease, self._in_flight.get(group.lease.index)
        if entry is None or entry.generated or lease.attempt >= entry.attempt:
            return group
        return replace(group, lease=replace(lease, attempt=entry.attempt))

    def awaits(self, index: int) -> bool:
        """Return whether the completions of lease `index` are still missing."""
        entry = self._in_flight.get(index)
        return index in self._waiting if entry is None else not entry.generated

    def add(self, group: Group) -> bool:
        """Add a judged group. Return False and ignore the group if its lease has moved on.

        Raises RunError for tokens of a version that the learner has not made, ValueError for an unjudged group.
        """
        index = group.lease.index
        if group.judgement is None:
            raise ValueError(f"the group of lease {index} has no judgement; only judged groups enter the buffer")
        newest = max(max(completion.versions) for completion in group.completions)
        accepted = self.judged(index, group.lease.attempt, group.oldest_version, newest)
        if accepted:
            self._groups[index] = group
        return accepted

    def batch(self) -> Batch | None:
        """Take the next update's groups; return None while some are missing and after the last update."""
        take = self.take()
        groups = () if take is None else tuple(self._groups[index] for index in take.indices)
        if len(self._groups) != self.held:
            self._groups = {index: group for index, group in self._groups.items() if self.holds(index)}
        return None if take is None else Batch(take.update, take.version, groups, take.staleness)

    def state_dict(self, *, below: int | None = None) -> dict[str, Any]:
        """Return admission's state as JSON-able values, and the groups in it. See `Admission.state_dict` for `below`.

        Groups of leases from `below` on are left out.
        """
        admission = super().state_dict(below=below)
        held = {row[0] for name in ("buffered", "reusable") for row in admission["entries"][name]}
        groups = tuple(group for index, group in self._groups.items() if index in held)
        return {"admission": admission, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; leases that were in flight are granted again.

        Raises UsageError if settings differ from the saved run's.
        """
        super().load_state_dict(state["admission"])
        self._groups = {group.lease.index: group for group in state["groups"]}


def group_to_dict(group: Group) -> dict[str, Any]:
    """Return `group` as JSON-able values, with only its prompt's position and id."""
    return {
        "lease": _shallow(group.lease) | {"prompt": group.lease.prompt.id},
        "completions": [_shallow(completion) for completion in group.completions],
        "judgement": None if group.judgement is None else _shallow(group.judgement),
    }


def group_from_dict(data: dict[str, Any], prompt: Prompt) -> Group:
    """Rebuild the group that `group_to_dict` wrote, also after a round trip through JSON.

    Raises UsageError if `prompt`, the one now at its position, has another id.
    """
    lease, judgement = data["lease"], data["judgement"]
    if prompt.id != lease["prompt"]:
        raise UsageError(
            f"position {lease['index']} of the prompts holds {prompt.id!r} now and held {lease['prompt']!r} when the "
            "run was saved; resume with the same prompts.source, prompts.split, prompts.seed and prompts.shuffle, or "
            "start a new run"
        )
    return Group(
        lease=Lease(**{**lease, "prompt": prompt}),
        completions=tuple(Completion(**with_tuples(completion)) for completion in data["completions"]),
        judgement=None if judgement is None else Judgement(**with_tuples(judgement)),
    )


def _shallow(record: Lease | Completion | Judgement) -> dict[str, Any]:
    # `dataclasses.asdict` would copy every token.
    return {field.name: getattr(record, field.name) for field in fields(record)}
