"""Random schedules through the buffer, as a run drives it: completion orders, deaths, late answers, lag, restarts.

The model beside it keeps its own books: what is where, which versions sampled which tokens, which update is next.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.records import Group
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from tests.fakes.generators import FakePrompts, judged_group

LEASE_SECONDS = 10.0
UNSETTLED = ("waiting", "in_flight")
THOROUGH = settings.get_current_profile_name() == "thorough"
RUNS, STEPS = 2500 if THOROUGH else 300, 40
"""Of the state machine; 100,000 steps together if thorough."""


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
        self.buffer = ReplayBuffer(config, FakePrompts(), total_updates)
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
            assert 0 <= lease.min_version <= self.buffer.version
            assert lease.prompt.id == f"fake:{lease.index}"
            self.where[lease.index] = "in_flight"
            started = start_version(lease.min_version, self.made)
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
        self.buffer = ReplayBuffer(self.config, FakePrompts(), self.total_updates)
        self.buffer.load_state_dict(state)
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

    def finish(self) -> None:
        """A fair schedule from here: everybody answers, the learner publishes. It must reach the end of the run."""
        rounds = 0
        while self.updates < self.total_updates:
            rounds += 1
            assert rounds <= 2 * self.total_updates + 2 * self.config.max_staleness + 2, (
                f"stuck: {self.buffer.ledger()}"
            )
            self.publish(self.made)
            self.grant(1000, start_version=lambda low, high: high)
            for index in sorted(self.flying):
                self.answer(index, self.made)
            while self.take():
                pass
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


class AnySchedule(RuleBasedStateMachine):
    """Whatever may happen in a run, in any order; a failure is shrunk to a few steps."""

    @initialize(config=configurations(), total_updates=st.integers(1, 8))
    def start(self, config: ReplayConfig, total_updates: int) -> None:
        self.model = Model(config, total_updates)

    @rule(limit=st.integers(0, 12), data=st.data())
    def grant(self, limit, data):
        self.model.grant(limit, start_version=lambda low, high: data.draw(st.integers(low, high)))

    @precondition(lambda self: self.model.flying)
    @rule(data=st.data())
    def answers(self, data):
        for index in data.draw(st.lists(st.sampled_from(sorted(self.model.flying)), min_size=1, unique=True)):
            self.model.answer(index, newest=data.draw(st.integers(0, self.model.made)))

    @precondition(lambda self: self.model.flying)
    @rule(data=st.data())
    def waits_on_purpose(self, data):
        self.model.hold(data.draw(st.sampled_from(sorted(self.model.flying))))

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def has_waited(self, data):
        self.model.release(data.draw(st.sampled_from(sorted(self.model.held))))

    @precondition(lambda self: self.model.flying)
    @rule(data=st.data())
    def a_judge_fails(self, data):
        self.model.judge_fails(data.draw(st.sampled_from(sorted(self.model.flying))))

    @precondition(lambda self: self.model.flying)
    @rule(data=st.data())
    def a_generator_dies(self, data):
        granted = st.lists(st.sampled_from(sorted(self.model.flying)), min_size=1, unique=True)
        self.model.generator_dies(data.draw(granted))

    @precondition(lambda self: self.model.old_answers)
    @rule(data=st.data())
    def an_old_answer_comes(self, data):
        self.model.old_answer(data.draw(st.sampled_from(self.model.old_answers)))

    @rule(seconds=st.sampled_from([1.0, 6.0, LEASE_SECONDS]))
    def time_passes(self, seconds):
        self.model.time_passes(seconds)

    @rule()
    def learn(self):
        self.model.take()

    @rule(data=st.data())
    def publish(self, data):
        self.model.publish(data.draw(st.integers(self.model.buffer.version, self.model.made)))

    @rule(below=st.none() | st.integers(0, 40))
    def restart(self, below):
        self.model.restart(below)

    @invariant()
    def every_prompt_is_accounted_for_once(self):
        if hasattr(self, "model"):
            self.model.check_ledger()

    def teardown(self):
        if hasattr(self, "model"):
            self.model.finish()


AnySchedule.TestCase.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAnySchedule = AnySchedule.TestCase


def without_failures(
    config: ReplayConfig, total_updates: int, choice: random.Random, first_in_first_out: bool
) -> Model:
    """A whole run in which every lease is answered, by generators and a publisher that lag at random."""
    model = Model(config, total_updates)
    for _ in range(200 + 100 * total_updates):
        if model.updates == total_updates:
            return model
        model.grant(choice.randrange(8), start_version=choice.randint)
        pending = sorted(model.flying)
        if not first_in_first_out:
            choice.shuffle(pending)
        for index in pending[: choice.randint(0, len(pending))]:
            model.answer(index, newest=choice.randint(0, model.made))
        for _ in range(choice.randrange(4)):
            model.take()
        model.publish(choice.randint(model.buffer.version, model.made))
        model.check_ledger()
    raise AssertionError(f"stuck: {model.buffer.ledger()}")


@settings(max_examples=200, deadline=None)
@given(configurations(order="lease"), st.integers(1, 12), st.integers(0, 2**32))
def test_lease_order_trains_every_lease_once_whatever_the_order_of_completion(config, total_updates, seed):
    """The model checks each batch: update u is exactly the leases [ub, (u+1)b), none of them discarded on the way."""
    model = without_failures(config, total_updates, random.Random(seed), first_in_first_out=False)
    assert model.uses == Counter(range(total_updates * config.prompts_per_update))
    assert model.buffer.ledger()["leased"] == total_updates * config.prompts_per_update
    model.finish()


@settings(max_examples=200, deadline=None)
@given(configurations(order="ready"), st.integers(1, 12), st.integers(0, 2**32))
def test_ready_order_discards_nothing_when_completions_come_in_the_order_of_leases(config, total_updates, seed):
    """Places in the queue are exact then, so admission alone must keep the bound, whatever lags."""
    config = config.model_copy(update={"max_reuse": 1})
    model = without_failures(config, total_updates, random.Random(seed), first_in_first_out=True)
    assert model.stale == 0
    assert model.buffer.ledger()["returned"] == {}
    model.finish()


@settings(max_examples=600 if THOROUGH else 200, deadline=None)
@given(configurations(), st.integers(1, 30), st.integers(0, 2**32), st.floats(0.0, 0.3))
def test_any_long_schedule_keeps_the_bound_and_the_books_and_can_be_finished(config, total_updates, seed, trouble):
    """Mostly progress, with trouble in between: reaches further into a run than the rules above."""
    model, choice = Model(config, total_updates), random.Random(seed)
    for _ in range(60):
        model.grant(choice.randrange(8), start_version=choice.randint)
        for index in [index for index in sorted(model.flying) if choice.random() < 0.2]:
            (model.release if index in model.held else model.hold)(index)
        for index in [index for index in sorted(model.flying) if choice.random() < 0.4]:
            model.answer(index, newest=choice.randint(0, model.made))
        if choice.random() < 0.7:
            model.take()
        if choice.random() < 0.5:
            model.publish(choice.randint(model.buffer.version, model.made))
        model.time_passes(choice.random())
        if choice.random() < trouble:
            some_trouble(model, choice)
        model.check_ledger()
    model.finish()


def some_trouble(model: Model, choice: random.Random) -> None:
    flying = sorted(model.flying)
    kind = choice.choice(["judge", "generator", "late", "clock", "restart"])
    if kind == "judge" and flying:
        model.judge_fails(choice.choice(flying))
    elif kind == "generator":
        model.generator_dies(choice.sample(flying, choice.randint(0, len(flying))))
    elif kind == "late" and model.old_answers:
        model.old_answer(choice.choice(model.old_answers))
    elif kind == "clock":
        model.time_passes(LEASE_SECONDS)
    elif kind == "restart":
        model.restart()
