"""Random schedules through the buffer, as a run drives it: completion orders, deaths, late answers, lag, restarts.

The model beside it keeps its own books: what is where, which versions sampled which tokens, which update is next.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.replay_buffer.config import ReplayConfig
from tests.actors.replay_buffer.run_model import LEASE_SECONDS, Model, configurations

THOROUGH = settings.get_current_profile_name() == "thorough"
RUNS, STEPS = 2500 if THOROUGH else 300, 40
"""Of the state machine; 100,000 steps together if thorough."""


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
            self.model.answer(index, newest=data.draw(st.integers(0, self.model.newest)))

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
        self.model.publish(data.draw(st.integers(self.model.buffer.version, self.model.newest)))

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
