"""The replay buffer: leases out, judged groups in, batches out, each within the staleness bound.

It keeps what the indices of `admission.py`, which makes every decision, stand for: prompts and groups. It must not
know who generates, judges or learns. It is driven from one thread, and its whole state is JSON-able.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from actors.errors import UsageError
from actors.records import Completion, Draw, Failure, Group, Judgement, Lease, Prompt
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


class ReplayBuffer:
    """Lease `i` is for the prompt at position `i` of `prompts`, whenever and however often it is granted.

    `total_updates`: updates in the whole run; no lease beyond the last one is granted. None: no end.
    Raises UsageError for settings that no run could meet.
    """

    def __init__(self, config: ReplayConfig, prompts: PromptOrder, total_updates: int | None = None) -> None:
        self._admission = Admission(config, total_updates)
        self._prompts = prompts
        self._groups: dict[int, Group] = {}

    @property
    def version(self) -> int:
        """The last published policy version."""
        return self._admission.version

    @property
    def updates(self) -> int:
        """Batches taken."""
        return self._admission.updates

    @property
    def in_flight(self) -> int:
        """Leases that are being generated, held or judged."""
        return self._admission.in_flight

    @property
    def buffered(self) -> int:
        """Judged groups that no update has consumed yet."""
        return self._admission.buffered

    def ages(self) -> list[int]:
        """Staleness, in versions, of each group an update may still consume, if the next update consumed it."""
        return self._admission.ages()

    def ledger(self) -> dict[str, Any]:
        """What became of every prompt; see `Admission.ledger`."""
        return self._admission.ledger()

    def grant(self, limit: int, now: float, draw: Draw = "all") -> list[Lease]:
        """At most `limit` leases, as many as the staleness bound allows; deadlines count from `now`, in seconds.

        `draw`: what they ask for; with `policy`, whoever asks must add the opponents before `add`.
        """
        return [
            Lease(each.index, each.attempt, self._prompts.prompt(each.index), each.min_version, each.deadline, draw)
            for each in self._admission.grant(limit, now)
        ]

    def generated(self, group: Group) -> bool:
        """Notes that `group` exists and goes to a judge. False: the lease has moved on; do not judge it."""
        return self._admission.generated(group.lease.index, group.lease.attempt)

    def hold(self, group: Group) -> bool:
        """Keeps the lease of `group` from expiring while its opponents are awaited. False: the lease has moved on."""
        return self._admission.hold(group.lease.index, group.lease.attempt)

    def release(self, group: Group, now: float) -> bool:
        """Ends `hold`; the lease's deadline counts from `now`, in seconds. False: the lease has moved on."""
        return self._admission.release(group.lease.index, group.lease.attempt, now)

    def add(self, group: Group) -> bool:
        """Takes in a judged group. False: the lease has moved on, and the group is ignored.

        Raises RunError for tokens of a version that the learner has not made, ValueError for an unjudged group.
        """
        index = group.lease.index
        if group.judgement is None:
            raise ValueError(f"the group of lease {index} has no judgement; only judged groups enter the buffer")
        newest = max(max(completion.versions) for completion in group.completions)
        accepted = self._admission.judged(index, group.lease.attempt, group.oldest_version, newest)
        if accepted:
            self._groups[index] = group
        return accepted

    def give_back(self, failure: Failure) -> None:
        """Takes back a lease that came to nothing. Its reason becomes a key of the ledger: keep it short."""
        self._admission.returned(failure.lease_index, failure.attempt, failure.reason)

    def lost(self, lease_indices: Iterable[int], reason: str) -> list[int]:
        """Takes back the leases that died with a generator, and says which; what is with a judge is not lost."""
        return self._admission.lost(lease_indices, reason)

    def expire(self, now: float) -> list[int]:
        """Takes back the leases whose deadline has passed, and says which."""
        return self._admission.expire(now)

    def take(self) -> Batch | None:
        """The next update's groups; None while they are not all there, and after the last update."""
        take = self._admission.take()
        groups = () if take is None else tuple(self._groups[index] for index in take.indices)
        self._groups = {index: group for index, group in self._groups.items() if self._admission.holds(index)}
        return None if take is None else Batch(take.update, take.version, groups, take.staleness)

    def published(self, version: int) -> None:
        """Generators have acknowledged policy `version`; call it for every k-th update, empty batches included.

        Raises RunError for a version below the last one or above what the learner has made.
        """
        self._admission.published(version)

    def settled(self, below: int) -> bool:
        """Whether every lease before `below` has been granted and nothing of it is waiting or in flight."""
        return self._admission.settled(below)

    def state_dict(self, *, below: int | None = None) -> dict[str, Any]:
        """Everything, as JSON-able values; prompts by position. Save it when no taken batch waits to be trained.

        `below`: leases from this one on are saved as if they were in flight still, without their groups.
        """
        admission = self._admission.state_dict(below=below)
        held = {row[0] for name in ("buffered", "reusable") for row in admission["entries"][name]}
        return {
            "admission": admission,
            "groups": [group_to_dict(group) for index, group in self._groups.items() if index in held],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`; what was in flight is granted again.

        Raises UsageError if settings or prompts are not those of the saved run.
        """
        groups = [group_from_dict(data, self._prompts.prompt(data["lease"]["index"])) for data in state["groups"]]
        self._admission.load_state_dict(state["admission"])
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
