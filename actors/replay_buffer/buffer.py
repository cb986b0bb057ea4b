"""The replay buffer: leases out, judged groups in, batches out, each within the staleness bound.

`admission.py` makes every decision, over indices; this module adds prompts and groups. It must not depend on
generators, judges or the learner. It is driven from one thread, and its whole state is JSON-able.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from actors.errors import UsageError
from actors.records import Completion, Draw, Group, Judgement, Lease, Prompt
from actors.replay_buffer.admission import Admission
from actors.replay_buffer.config import ReplayConfig


class PromptOrder(Protocol):
    """The endless order in which prompts are offered; the same position is the same prompt, after a resume too."""

    def prompt(self, position: int) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One update's groups. Made by the replay buffer; read by pairing and learner."""

    update: int
    version: int
    """The policy version that the update trains: `update // updates_per_publish`."""
    groups: tuple[Group, ...]
    """By lease index in lease order, oldest tokens first in ready order. Empty: nothing to train on in this update."""
    staleness: tuple[int, ...]
    """`version` minus the oldest token version of each group; at most `max_staleness`."""


class ReplayBuffer(Admission):
    """Admission with the prompts and groups that its indices stand for.

    Lease `i` is for the prompt at position `i` of `prompts`, whenever and however often it is granted.
    `total_updates`: updates in the whole run; no lease beyond the last one is granted. None: no end.
    Raises UsageError for settings that no run could meet.
    """

    def __init__(self, config: ReplayConfig, prompts: PromptOrder, total_updates: int | None = None) -> None:
        super().__init__(config, total_updates)
        self._prompts = prompts
        self._groups: dict[int, Group] = {}

    def lease(self, limit: int, now: float, draw: Draw = "all") -> list[Lease]:
        """Grant at most `limit` leases, as many as the staleness bound allows; deadlines count from `now` (seconds).

        `draw`: the completions they ask for; with `policy`, the caller must add the opponents before `add`.
        """
        return [
            Lease(each.index, each.attempt, self._prompts.prompt(each.index), each.min_version, each.deadline, draw)
            for each in self.grant(limit, now)
        ]

    def add(self, group: Group) -> bool:
        """Take in a judged group. Returns False, and ignores the group, if its lease has moved on.

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
        """Take the next update's groups; None while some are missing, and after the last update."""
        take = self.take()
        groups = () if take is None else tuple(self._groups[index] for index in take.indices)
        self._groups = {index: group for index, group in self._groups.items() if self.holds(index)}
        return None if take is None else Batch(take.update, take.version, groups, take.staleness)

    def state_dict(self, *, below: int | None = None) -> dict[str, Any]:
        """Return everything as JSON-able values; prompts by position. Save it when no batch waits to be trained.

        `below`: leases from this one on are saved as if they were still in flight, without their groups.
        """
        admission = super().state_dict(below=below)
        held = {row[0] for name in ("buffered", "reusable") for row in admission["entries"][name]}
        return {
            "admission": admission,
            "groups": [group_to_dict(group) for index, group in self._groups.items() if index in held],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; leases that were in flight are granted again.

        Raises UsageError if settings or prompts are not those of the saved run.
        """
        groups = [group_from_dict(data, self._prompts.prompt(data["lease"]["index"])) for data in state["groups"]]
        super().load_state_dict(state["admission"])
        self._groups = {group.lease.index: group for group in groups}


def group_to_dict(group: Group) -> dict[str, Any]:
    """`group` as JSON-able values, its prompt by position and id alone."""
    return {
        "lease": _shallow(group.lease) | {"prompt": group.lease.prompt.id},
        "completions": [_shallow(completion) for completion in group.completions],
        "judgement": None if group.judgement is None else _shallow(group.judgement),
    }


def group_from_dict(data: dict[str, Any], prompt: Prompt) -> Group:
    """The group that `group_to_dict` wrote, after any trip through JSON.

    Raises UsageError if `prompt`, the one now at its position, is another.
    """
    lease, judgement = data["lease"], data["judgement"]
    if prompt.id != lease["prompt"]:
        raise UsageError(
            f"position {lease['index']} of the prompts holds {prompt.id!r} now and held {lease['prompt']!r} when the "
            "run was saved; resume with the same prompts.source, split, seed and shuffle, or start a new run"
        )
    return Group(
        lease=Lease(**{**lease, "prompt": prompt}),
        completions=tuple(Completion(**_tuples(completion)) for completion in data["completions"]),
        judgement=None if judgement is None else Judgement(**_tuples(judgement)),
    )


def _shallow(record: Lease | Completion | Judgement) -> dict[str, Any]:
    """Unlike `dataclasses.asdict`, does not copy every token on the way."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: _as_tuple(value) for name, value in data.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
