"""Combine D coordinators into one whole: decide which shard owns a lease, and unite their parts into batches.

Each shard is a `ReplayBuffer`, unchanged, with b/D of an update's prompts. Lease i of the whole is lease n = floor(i/D)
of shard j = i mod D, so i = nD + j. D divides b, hence floor(i/b) = floor(n / (b/D)): a shard's own lease has the
update, the version and `min_version` that lease i has in the whole. Update u of the whole is the union of the D parts
for u, and a version ends with the last of its k updates.

The bound of the whole holds under four rules. The learner trains update u when it has all D parts, in order, and
publishes after each k. A shard counts a version as published once it has heard of it. A generator has `min_version`
when it starts a lease. A shard's parts arrive in order, and a repeated part is ignored. Proof: a lease has the same
update and `min_version` in its shard as in the whole, and late news of a version delay a grant and never make one too
early.

Must not know how shards, generators and learner reach each other.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import RunError, UsageError
from actors.records import Group, Prompt
from actors.replay_buffer.buffer import Batch, PromptOrder, ReplayBuffer
from actors.replay_buffer.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class Shards:
    """The division of a run's leases among `count` shards, D. Raises UsageError if D does not divide b."""

    config: ReplayConfig
    """Settings of the whole."""
    count: int

    def __post_init__(self) -> None:
        b, count = self.config.prompts_per_update, self.count
        if count < 1:
            raise UsageError(f"{count} shards cannot hold any lease; there must be at least 1")
        if b % count:
            fewer = max(each for each in range(1, count) if b % each == 0)
            sizes = " or ".join(str(size) for size in (b // count * count, (b // count + 1) * count) if size)
            raise UsageError(
                f"replay.prompts_per_update {b} cannot be shared by {count} shards: each gives as many prompts to "
                f"every update; use {fewer} shards, or set replay.prompts_per_update to {sizes}"
            )

    @property
    def each(self) -> ReplayConfig:
        """Return the settings of every shard: those of the whole, with b/D prompts for each update."""
        return self.config.model_copy(update={"prompts_per_update": self.config.prompts_per_update // self.count})

    def owner(self, index: int) -> int:
        """Return the shard that owns lease `index` of the whole."""
        return index % self.count

    def local(self, index: int) -> int:
        """Return the number of lease `index` of the whole within its shard."""
        return index // self.count

    def index(self, shard: int, local: int) -> int:
        """Return the index in the whole of lease `local` of `shard`."""
        return local * self.count + shard

    def buffer(self, shard: int, prompts: PromptOrder, total_updates: int | None = None) -> ReplayBuffer:
        """Make the buffer of `shard`. `prompts` are those of the whole; the buffer reads only its own positions."""
        return ReplayBuffer(self.each, _OwnPrompts(self, shard, prompts), total_updates)


@dataclass(frozen=True, slots=True)
class _OwnPrompts:
    """One shard's prompts, by the shard's own numbers."""

    shards: Shards
    shard: int
    prompts: PromptOrder

    def prompt(self, position: int) -> Prompt:
        return self.prompts.prompt(self.shards.index(self.shard, position))


class Assembly:
    """Unites parts into batches, on the learner's side. Each shard's parts come in order; shards need not keep step.

    An early part waits. Update u is complete when all D shards have given their part for u.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.updates = 0
        self._empty_updates = 0
        self._parts: tuple[deque[Batch], ...] = tuple(deque() for _ in range(shards.count))

    @property
    def training_version(self) -> int:
        """Policy version that the next update trains: all versions before it have ended."""
        return self.updates // self.shards.config.updates_per_publish

    @property
    def missing(self) -> list[int]:
        """Return the shards whose part for the next update is missing."""
        return [shard for shard, parts in enumerate(self._parts) if not parts]

    def wanted(self, shard: int) -> int:
        """Return the update that the next part of `shard` is for."""
        return self.updates + len(self._parts[shard])

    def add(self, shard: int, part: Batch) -> bool:
        """Add a shard's part. Return False and ignore the part if it was given before.

        Raises RunError if an earlier part of the shard is missing.
        """
        wanted = self.wanted(shard)
        if part.update > wanted:
            raise RunError(
                f"shard {shard} gave its part of update {part.update}, but its part of update {wanted} has not come; "
                "send a shard's parts in order, and again from there after a failure"
            )
        if part.update == wanted:
            self._parts[shard].append(part)
        return part.update == wanted

    def batch(self) -> Batch | None:
        """Unite the parts of the next update, with indices of the whole; return None while a part is missing.

        Groups are sorted by lease index in lease order, shard after shard in ready order.
        """
        if self.missing:
            return None
        rows: list[tuple[Group, int]] = []
        for shard, parts in enumerate(self._parts):
            part = parts.popleft()
            rows += zip((self._of_whole(shard, group) for group in part.groups), part.staleness, strict=True)
        if self.shards.config.order == "lease":
            rows.sort(key=lambda row: row[0].lease.index)
        batch = Batch(
            self.updates, self.training_version, tuple(group for group, _ in rows), tuple(age for _, age in rows)
        )
        self._empty_updates += not rows
        self.updates += 1
        return batch

    def ledger(self, buffers: Sequence[ReplayBuffer]) -> dict[str, Any]:
        """Return the sum of the shards' ledgers. Its two sums hold because they hold in each shard.

        `trained` and `reused` count groups that shards gave; `given` counts those that wait for other shards' parts.
        """
        ledgers = [buffer.ledger() for buffer in buffers]
        total = {name: _sum([ledger[name] for ledger in ledgers]) for name in ledgers[0]}
        given = sum(len(part.groups) for parts in self._parts for part in parts)
        return total | {"empty_updates": self._empty_updates, "given": given}

    def state_dict(self, buffers: Sequence[ReplayBuffer]) -> dict[str, Any]:
        """Return the state of the whole: JSON-able values, but for the groups of buffers and of waiting parts.

        No version may be published between this state, the shards' and the learner's.
        """
        return {
            "shards": self.shards.count,
            "updates": self.updates,
            "empty_updates": self._empty_updates,
            "parts": [[[part.update, part.version, part.staleness] for part in parts] for parts in self._parts],
            "groups": [[part.groups for part in parts] for parts in self._parts],
            "buffers": [buffer.state_dict() for buffer in buffers],
        }

    def load_state_dict(self, state: Mapping[str, Any], buffers: Sequence[ReplayBuffer]) -> None:
        """Continue from `state` with new `buffers`. Raises UsageError if the states do not belong together."""
        if state["shards"] != self.shards.count:
            raise UsageError(
                f"the run to resume has {state['shards']} shards, not {self.shards.count}: its leases are numbered by "
                f"shard; resume with {state['shards']} shards, or start a new run"
            )
        self.updates, self._empty_updates = state["updates"], state["empty_updates"]
        for parts, rows, groups in zip(self._parts, state["parts"], state["groups"], strict=True):
            parts.clear()
            for (update, version, staleness), of_part in zip(rows, groups, strict=True):
                parts.append(Batch(update, version, tuple(of_part), tuple(staleness)))
        for shard, (buffer, saved) in enumerate(zip(buffers, state["buffers"], strict=True)):
            buffer.load_state_dict(saved)
            if buffer.updates != self.wanted(shard) or buffer.version > self.training_version:
                raise UsageError(
                    f"shard {shard} was saved before update {buffer.updates} and at version {buffer.version}, but the "
                    f"learner waits for its part of update {self.wanted(shard)} and has made versions up to "
                    f"{self.training_version}; resume all from one checkpoint of the whole"
                )

    def _of_whole(self, shard: int, group: Group) -> Group:
        index = self.shards.index(shard, group.lease.index)
        return replace(group, lease=replace(group.lease, index=index))


def _sum(values: Sequence[Any]) -> Any:
    """Return the sum of counts, or of counts by reason."""
    if isinstance(values[0], Mapping):
        return dict(sum((Counter(value) for value in values), Counter()))
    return sum(values)
