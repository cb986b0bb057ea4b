"""Four shards and a learner that hear of each other late: the bound and the ledger of the whole.

Every shard has the model of one buffer, whose rules it goes through in turn. The whole keeps books of its own, by the
indices of the whole: which version trained which lease, and which versions sampled its tokens.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from actors.errors import UsageError
from actors.replay_buffer.buffer import Batch, ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.ledger import imbalance
from actors.replay_buffer.shards import Assembly, Shards
from tests.actors.replay_buffer.run_model import LEASE_SECONDS, Model, configurations
from tests.actors.replay_buffer.test_admission_properties import STEPS, THOROUGH, AnySchedule, some_trouble
from tests.fakes.generators import FakePrompts

D = 4


@st.composite
def of_four(draw: st.DrawFn, order: str | None = None) -> ReplayConfig:
    """The settings of a whole: each shard has 1 to 3 prompts of an update."""
    config = draw(configurations(order=order))
    return config.model_copy(update={"prompts_per_update": D * config.prompts_per_update})


class Shard(Model):
    """One coordinator. Its generators have what the learner published; it knows only what it was told."""

    def __init__(self, whole: Whole, number: int) -> None:
        self.whole, self.number = whole, number
        self.sent = deque[Batch]()
        super().__init__(whole.shards.each, whole.total_updates)

    def new_buffer(self) -> ReplayBuffer:
        return self.whole.shards.buffer(self.number, FakePrompts(), self.total_updates)

    def prompt_id(self, index: int) -> str:
        return f"fake:{D * index + self.number}"

    @property
    def newest(self) -> int:
        return self.whole.published

    def _check(self, batch: Batch, due: int) -> None:
        super()._check(batch, due)
        self.sent.append(batch)


class Whole:
    """Four shards, their parts on the way, and a learner."""

    def __init__(self, config: ReplayConfig, total_updates: int, kind: type[Shard] = Shard) -> None:
        self.config, self.total_updates = config, total_updates
        self.shards = Shards(config, D)
        self.assembly = Assembly(self.shards)
        self.updates, self.published = 0, 0
        self.uses: Counter[int] = Counter()
        self.models = [kind(self, number) for number in range(D)]

    @property
    def made(self) -> int:
        return self.updates // self.config.updates_per_publish

    @property
    def buffers(self) -> list[ReplayBuffer]:
        return [model.buffer for model in self.models]

    def deliver(self, number: int) -> None:
        """The next part of a shard arrives; sent once more, it changes nothing."""
        part = self.models[number].sent.popleft()
        assert self.assembly.wanted(number) == part.update
        assert self.assembly.add(number, part)
        assert not self.assembly.add(number, part)

    def train(self) -> bool:
        given = [model.updates - len(model.sent) for model in self.models]
        batch = self.assembly.batch()
        assert (batch is None) == (min(given) == self.updates), "an update is complete when all shards gave their part"
        if batch is not None:
            self._check(batch)
        return batch is not None

    def _check(self, batch: Batch) -> None:
        due, size = self.made, self.config.prompts_per_update
        assert (batch.update, batch.version) == (self.updates, due)
        taken = [group.lease.index for group in batch.groups]
        if self.config.order == "lease":
            span = range(self.updates * size, (self.updates + 1) * size)
            assert taken == [i for i in span if self.models[i % D].where[i // D] != "dropped"]
        else:
            assert Counter(index % D for index in taken) == dict.fromkeys(range(D), size // D)
        for group, staleness in zip(batch.groups, batch.staleness, strict=True):
            versions = [version for completion in group.completions for version in completion.versions]
            assert group.lease.prompt.id == f"fake:{group.lease.index}"
            assert staleness == due - min(versions)
            assert 0 <= staleness <= self.config.max_staleness
            assert max(versions) <= due
            self.uses[group.lease.index] += 1
            assert self.uses[group.lease.index] <= self.config.max_reuse
        self.updates += 1

    def restart(self) -> None:
        """From one state of everything; a state that lacks a part on the way is refused."""
        lacking = any(model.sent for model in self.models)
        if lacking:
            with pytest.raises(UsageError, match="resume all from one checkpoint of the whole"):
                self._load(self._saved(), self._new_buffers())
            for number, model in enumerate(self.models):
                while model.sent:
                    self.deliver(number)
        buffers = self._new_buffers()
        self._load(self._saved(), buffers)
        for model, buffer in zip(self.models, buffers, strict=True):
            model.buffer = buffer
            model.restarted()

    def _new_buffers(self) -> list[ReplayBuffer]:
        return [model.new_buffer() for model in self.models]

    def _saved(self) -> dict:
        state = self.assembly.state_dict(self.buffers)
        kept = {name: state.pop(name) for name in ("groups", "buffers")}
        for saved in kept["buffers"]:
            saved["admission"] = json.loads(json.dumps(saved["admission"]))
        return json.loads(json.dumps(state)) | kept

    def _load(self, state: dict, buffers: list[ReplayBuffer]) -> None:
        assembly = Assembly(self.shards)
        assembly.load_state_dict(state, buffers)
        self.assembly = assembly

    def check_ledger(self) -> None:
        """The sum of all places of all shards; what was given is with the learner, on the way or waiting."""
        ledger = self.assembly.ledger(self.buffers)
        places = Counter(place for model in self.models for place in model.where.values())
        assert imbalance(ledger) == ""
        assert ledger["offered"] == sum(places.values())
        assert {name: ledger[name] for name in ("waiting", "in_flight", "buffered", "trained")} == {
            name: places[name] for name in ("waiting", "in_flight", "buffered", "trained")
        }
        assert sum(ledger["dropped"].values()) == places["dropped"]
        on_the_way = sum(len(part.groups) for model in self.models for part in model.sent)
        assert ledger["trained"] + ledger["reused"] == sum(self.uses.values()) + ledger["given"] + on_the_way
        ahead = (self.config.max_staleness + 1) * self.config.updates_per_publish
        assert max(model.updates for model in self.models) <= self.updates + ahead, "no shard runs further ahead"

    def finish(self) -> None:
        """A fair schedule from here: messages arrive, generators answer. It must reach the end of the run."""
        for _ in range(2 * self.total_updates + 2 * self.config.max_staleness + 2):
            self.published = self.made
            for number, model in enumerate(self.models):
                model.serve(self.published)
                while model.sent:
                    self.deliver(number)
            while self.train():
                pass
        assert self.updates == self.total_updates, f"stuck: {self.assembly.ledger(self.buffers)}"
        self.check_ledger()
        where = {D * n + model.number: place for model in self.models for n, place in model.where.items()}
        assert set(self.uses) == {index for index, place in where.items() if place == "trained"}
        if self.config.max_reuse == 1:
            assert set(where.values()) <= {"trained", "dropped"}, "every lease is trained or dropped"
            assert set(self.uses.values()) <= {1}, "and trained once"
        if self.config.order == "lease":
            assert sorted(where) == list(range(self.total_updates * self.config.prompts_per_update))


class FourShards(AnySchedule):
    """Whatever may happen to one shard, for a while; then it is another one's turn, and this one lags."""

    @initialize(config=of_four(), total_updates=st.integers(1, 6))
    def start(self, config: ReplayConfig, total_updates: int) -> None:
        self.whole = Whole(config, total_updates)
        self.model = self.whole.models[0]

    @rule(number=st.integers(0, D - 1))
    def turn(self, number):
        self.model = self.whole.models[number]

    @rule(numbers=st.permutations(range(D)), count=st.integers(1, D))
    def several_go_on(self, numbers, count):
        """Without this, few random schedules would complete an update of all four."""
        for number in numbers[:count]:
            model = self.whole.models[number]
            model.publish(self.whole.published)
            model.grant(1000, start_version=lambda low, high: low)
            for index in sorted(model.flying):
                model.answer(index, self.whole.published)
            model.take()

    @precondition(lambda self: any(model.sent for model in self.whole.models))
    @rule(data=st.data())
    def a_part_arrives(self, data):
        self.whole.deliver(data.draw(st.sampled_from([m.number for m in self.whole.models if m.sent])))

    @rule()
    def the_learner_trains(self):
        self.whole.train()

    @rule(data=st.data())
    def the_learner_publishes(self, data):
        self.whole.published = data.draw(st.integers(self.whole.published, self.whole.made))

    @rule()
    def restart(self):
        self.whole.restart()

    @invariant()
    def every_prompt_of_the_whole_is_accounted_for_once(self):
        if hasattr(self, "whole"):
            self.whole.check_ledger()

    def teardown(self):
        if hasattr(self, "whole"):
            self.whole.finish()


FourShards.TestCase.settings = settings(
    max_examples=1000 if THOROUGH else 150,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFourShards = FourShards.TestCase


def some_steps(whole: Whole, model: Shard, choice: random.Random, trouble: float) -> None:
    """One shard's: leases, answers, a part, an announcement that may be old; and what goes wrong."""
    model.grant(choice.randrange(12), start_version=choice.randint)
    for index in [index for index in sorted(model.flying) if choice.random() < 0.6]:
        model.answer(index, newest=choice.randint(0, whole.published))
    if choice.random() < 0.8:
        model.take()
    if choice.random() < 0.5:
        model.publish(choice.randint(model.buffer.version, whole.published))
    model.time_passes(choice.random())
    if choice.random() < trouble:
        some_trouble(model, choice)
    if model.sent and choice.random() < 0.7:
        whole.deliver(model.number)


@settings(max_examples=300 if THOROUGH else 100, deadline=None)
@given(of_four(), st.integers(1, 20), st.integers(0, 2**32), st.floats(0.0, 0.3), st.floats(0.02, 1.0))
def test_the_whole_keeps_the_bound_and_the_books_however_far_one_shard_lags(config, updates, seed, trouble, pace):
    """Shard 0 acts in a share `pace` of the rounds; the others in all."""
    whole, choice = Whole(config, updates), random.Random(seed)
    for _ in range(60):
        for model in whole.models:
            if model.number or choice.random() < pace:
                some_steps(whole, model, choice, trouble)
        whole.train()
        if choice.random() < 0.5:
            whole.published = choice.randint(whole.published, whole.made)
        if choice.random() < 0.1 * trouble:
            whole.restart()
        whole.check_ledger()
    whole.finish()


@settings(max_examples=100, deadline=None)
@given(of_four(order="lease"), st.integers(1, 10), st.integers(0, 2**32))
def test_without_failures_four_shards_train_every_lease_of_the_whole_once(config, updates, seed):
    whole, choice = Whole(config, updates), random.Random(seed)
    for _ in range(40):
        for model in choice.sample(whole.models, choice.randint(1, D)):
            some_steps(whole, model, choice, trouble=0.0)
            model.now = 0.0  # nothing expires
        whole.train()
        whole.published = choice.randint(whole.published, whole.made)
    whole.finish()
    assert whole.uses == Counter(range(updates * config.prompts_per_update))
    assert whole.assembly.ledger(whole.buffers)["leased"] == updates * config.prompts_per_update


def ten_rounds(model: Shard) -> None:
    for _ in range(10):
        model.grant(1000, start_version=lambda low, high: low)
        for index in sorted(model.flying):
            model.answer(index, model.whole.published)
        model.take()


class RunsAhead(Shard):
    """Takes a version for published once it has given its own parts, as if there were no other shards."""

    def take(self) -> bool:
        given = super().take()
        self.buffer.published(self.made)
        return given


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_shard_that_does_not_wait_for_the_others_is_seen(staleness):
    """Its lease of version S + 1 needs version 1, which nobody made: only shard 0 gave anything to update 0."""
    config = ReplayConfig(prompts_per_update=D, max_staleness=staleness, lease_seconds=LEASE_SECONDS)
    honest, ahead = (Whole(config, 10, kind).models[0] for kind in (Shard, RunsAhead))
    ten_rounds(honest)
    assert honest.updates == staleness + 1, "after its own leases of versions 0 to S it waits"
    with pytest.raises(AssertionError):
        ten_rounds(ahead)
