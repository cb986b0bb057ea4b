"""A run in miniature around one replay buffer, with books of its own, for tests that drive random schedules."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from hypothesis import strategies as st

from actors.records import Group
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from tests.fakes.generators import FakePrompts, judged_group

LEASE_SECONDS = 10.0
UNSETTLED = ("waiting", "in_flight")


@st.composite
def configurations(draw: st.DrawFn, order: str | None = None, max_attempts: int | None = None) -> ReplayConfig:
    per_publish = draw(st.integers(1, 3))
    staleness = draw(st.integers(0, 4))
    order = order or draw(st.sampled_from(["lease", "ready"]))
    reuse = draw(st.integers(1, min(3, (staleness + 1) * per_publish))) if order == "ready" else 1
    return ReplayConfig(
        prompts_per_update=draw(st.integers(1, 3)),
        updates_per_publish=per_publish,
        max_staleness=staleness,
        order=order,
        max_reuse=reuse,
        lease_seconds=LEASE_SECONDS,
        max_attempts=max_attempts or draw(st.integers(1, 3)),
    )


class Model:
    """A run in miniature with books of its own, which share no code with the buffer's."""

    def __init__(self, config: ReplayConfig, total_updates: int) -> None:
        self.config = config
        self.total_updates = total_updates
        self.buffer = self.new_buffer()
        self.now = 0.0
        self.updates = 0
        self.where: dict[int, str] = {}
        self.flying: dict[int, Group] = {}
        self.generated: set[int] = set()
        """Flying groups that no generator holds any more."""
        self.held: set[int] = set()
        """Those of them that wait on purpose."""
        self.ready: dict[int, Group] = {}
        self.old_answers: list[Group] = []
        self.failures: Counter[int] = Counter()
        self.uses: Counter[int] = Counter()
        self.stale = 0

    def new_buffer(self) -> ReplayBuffer:
        return ReplayBuffer(self.config, FakePrompts(), self.total_updates)

    def prompt_id(self, index: int) -> str:
        return f"fake:{index}"

    @property
    def newest(self) -> int:
        """The newest version that a generator can have."""
        return self.made

    @property
    def made(self) -> int:
        """The newest version that the learner can have made."""
        return self.updates // self.config.updates_per_publish

    def grant(self, limit: int, start_version) -> None:
        """`start_version(low, high)` says how far behind the generator is that starts the lease."""
        leases = self.buffer.lease(limit, self.now)
        assert len(leases) <= limit
        for lease in leases:
            assert self.where.get(lease.index) in (None, "waiting")
            assert 0 <= lease.min_version <= min(self.buffer.version, self.newest)
            assert lease.prompt.id == self.prompt_id(lease.index)
            self.where[lease.index] = "in_flight"
            started = start_version(lease.min_version, self.newest)
            self.flying[lease.index] = judged_group(lease, (started,), (started,))

    def answer(self, index: int, newest: int) -> None:
        """The group comes back; its last token was sampled after an update in flight to `newest`."""
        oldest = self.flying[index].oldest_version
        group = judged_group(self.flying.pop(index).lease, (oldest, max(oldest, newest)), (max(oldest, newest),))
        self.buffer.generated(group.lease.index, group.lease.attempt)
        assert self.buffer.add(group)
        self.generated.discard(index)
        self.held.discard(index)
        self.where[index] = "buffered"
        self.ready[index] = group
        self.old_answers.append(group)

    def hold(self, index: int) -> None:
        """The completions exist and wait for others before they go to the judge."""
        group = self.flying[index]
        assert self.buffer.generated(group.lease.index, group.lease.attempt) == (index not in self.generated)
        assert self.buffer.hold(group.lease.index, group.lease.attempt)
        self.generated.add(index)
        self.held.add(index)

    def release(self, index: int) -> None:
        group = self.flying[index]
        assert self.buffer.release(group.lease.index, group.lease.attempt, self.now)
        self.held.discard(index)
        self.flying[index] = replace(group, lease=replace(group.lease, deadline=self.now + LEASE_SECONDS))

    def judge_fails(self, index: int) -> None:
        self.buffer.returned(index, self.flying[index].lease.attempt, "judge timeout")
        self._left_flight(index, "judge timeout")

    def generator_dies(self, granted: list[int]) -> None:
        lost = [index for index in granted if index not in self.generated]
        assert self.buffer.lost(granted, "generator died") == lost
        for index in lost:
            self._left_flight(index, "generator died")

    def old_answer(self, group: Group) -> None:
        late = self.buffer.ledger()["late"]
        assert not self.buffer.add(group)
        assert not self.buffer.generated(group.lease.index, group.lease.attempt)
        assert not self.buffer.hold(group.lease.index, group.lease.attempt)
        assert not self.buffer.release(group.lease.index, group.lease.attempt, self.now)
        self.buffer.returned(group.lease.index, group.lease.attempt, "late")
        assert self.buffer.ledger()["late"] == late + 5

    def _left_flight(self, index: int, reason: str) -> None:
        self.old_answers.append(self.flying.pop(index))
        self.generated.discard(index)
        self.held.discard(index)
        self._failed(index, reason)

    def _failed(self, index: int, reason: str) -> None:
        if reason != "restart":
            self.failures[index] += 1
        gone = self.failures[index] >= self.config.max_attempts and reason != "restart"
        self.where[index] = "dropped" if gone else "waiting"

    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        passed = {index for index, group in self.flying.items() if group.lease.deadline <= self.now}
        expected = passed - self.held
        assert set(self.buffer.expire(self.now)) == expected
        for index in expected:
            self._left_flight(index, "expired")

    def publish(self, version: int) -> None:
        self.buffer.published(version)

    def take(self) -> bool:
        due = self.made
        batch = self.buffer.batch()
        self._sweep(due)
        if batch is not None:
            self._check(batch, due)
        return batch is not None

    def _sweep(self, due: int) -> None:
        if self.updates == self.total_updates:
            return
        for index in list(self.ready):
            at = index // self.config.prompts_per_version if self.config.order == "lease" else due
            if at - self.ready[index].oldest_version > self.config.max_staleness:
                del self.ready[index]
                if not self.uses[index]:
                    self.stale += 1
                    self._failed(index, "stale")

    def _check(self, batch: Batch, due: int) -> None:
        assert (batch.update, batch.version) == (self.updates, due)
        size = self.config.prompts_per_update
        taken = [group.lease.index for group in batch.groups]
        if self.config.order == "lease":
            span = range(self.updates * size, (self.updates + 1) * size)
            assert taken == [index for index in span if self.where[index] != "dropped"]
        else:
            assert len(taken) == size == len(set(taken))
            left = [
                self.ready[index].oldest_version for index in self.ready if index not in taken and not self.uses[index]
            ]
            fresh = [self.ready[index].oldest_version for index in taken if not self.uses[index]]
            assert not left or not fresh or max(fresh) <= min(left)
        for group, staleness in zip(batch.groups, batch.staleness, strict=True):
            versions = [version for completion in group.completions for version in completion.versions]
            assert staleness == due - min(versions)
            assert 0 <= staleness <= self.config.max_staleness
            assert max(versions) <= due
            if self.config.max_staleness == 0:
                assert set(versions) == {due}
            index = group.lease.index
            assert self.ready[index] == group
            self.uses[index] += 1
            assert self.uses[index] <= self.config.max_reuse
            self.where[index] = "trained"
            if self.uses[index] == self.config.max_reuse:
                del self.ready[index]
        self.updates += 1

    def restart(self, below: int | None = None) -> None:
        """From a state that was cut before lease `below`: what was buffered of later ones is to be granted again."""
        state = self.buffer.state_dict(below=below)
        state |= {"admission": json.loads(json.dumps(state["admission"]))}
        settled = below is not None and all(self.where.get(i, "waiting") not in UNSETTLED for i in range(below))
        assert below is None or self.buffer.settled(below) == settled
        self.buffer = self.new_buffer()
        self.buffer.load_state_dict(state)
        self.restarted(below)

    def restarted(self, below: int | None = None) -> None:
        for index in list(self.flying):
            self._left_flight(index, "restart")
        if below is not None:
            for index in [i for i in self.ready if i >= below and self.where[i] == "buffered"]:
                self.old_answers.append(self.ready.pop(index))
                self._failed(index, "restart")

    def check_ledger(self) -> None:
        """Every prompt is in one place, and the ledger says the same of how many are where."""
        ledger, places = self.buffer.ledger(), Counter(self.where.values())
        assert ledger["offered"] == len(self.where) == (max(self.where) + 1 if self.where else 0)
        assert {name: ledger[name] for name in ("waiting", "in_flight", "buffered", "trained")} == {
            name: places[name] for name in ("waiting", "in_flight", "buffered", "trained")
        }
        assert sum(ledger["dropped"].values()) == places["dropped"]
        assert ledger["returned"].get("stale", 0) + ledger["dropped"].get("stale", 0) == self.stale
        assert ledger["leased"] == sum(ledger["returned"].values()) + sum(
            (*ledger["dropped"].values(), places["in_flight"], places["buffered"], places["trained"])
        )
        assert sorted(self.buffer.ages()) == sorted(self.made - group.oldest_version for group in self.ready.values())
        assert self.buffer.updates == self.updates

    def serve(self, version: int) -> None:
        """Hear of `version`; everybody answers what can be granted, and all that is ready is taken."""
        self.publish(version)
        self.grant(1000, start_version=lambda low, high: high)
        for index in sorted(self.flying):
            self.answer(index, self.newest)
        while self.take():
            pass

    def finish(self) -> None:
        """A fair schedule from here: everybody answers, the learner publishes. It must reach the end of the run."""
        rounds = 0
        while self.updates < self.total_updates:
            rounds += 1
            assert rounds <= 2 * self.total_updates + 2 * self.config.max_staleness + 2, (
                f"stuck: {self.buffer.ledger()}"
            )
            self.serve(self.made)
        self.check_ledger()
        places = Counter(self.where.values())
        if self.config.max_reuse == 1:
            assert places["trained"] + places["dropped"] == len(self.where), "a finished run has nothing left over"
        if self.config.order == "lease":
            assert self.stale == 0, "in lease order nothing is ever over the bound"
            everything = range(self.total_updates * self.config.prompts_per_update)
            assert sorted(self.where) == list(everything)
            assert {index for index in everything if self.uses[index] == 1} == {
                index for index in everything if self.where[index] == "trained"
            }
