"""The simulation: cases by hand, the staleness bound, and a slow independent simulation in steps of one second."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from actors.replay_buffer.admission import Admission
from launch.plan import simulation
from launch.plan.derive import calibrated
from launch.plan.model import Times
from launch.plan.prediction import extrapolated, outcome, predict
from launch.plan.simulation import Simulation
from tests.launch.plan.models import Ticks, model


def test_with_bound_0_generation_and_learning_alternate():
    """1 s to sample, 1 s to train: 2 s per update, and each side is idle for half of it."""
    found = predict(model(100, max_staleness=0))
    assert found.seconds == 200.0
    assert found.generator == {"generating": 0.5, "updating": 0.0, "idle": 0.5}
    assert found.learner == {"training": 0.5, "waiting": 0.5, "publishing": 0.0, "other": 0.0}
    assert found.staleness == {0: 1.0}


def test_with_bound_1_generation_and_learning_overlap():
    """1 s per update after the first group, which nothing overlaps. Only the first update trains at staleness 0."""
    found = predict(model(100, max_staleness=1))
    assert found.seconds == 101.0
    assert found.learner["waiting"] == pytest.approx(1 / 101)
    assert found.staleness == {0: 0.01, 1: 0.99}


def test_the_learner_s_idle_share_is_what_slow_generators_leave():
    """A group each 3 s, an update of 1 s: the learner works a third of the time, n updates take 3n + 1 s."""
    found = predict(model(50, group_seconds=3.0))
    assert found.seconds == 151.0
    assert found.learner["training"] == pytest.approx(50 / 151)
    assert found.learner["waiting"] == pytest.approx(101 / 151)
    assert found.generator["generating"] == pytest.approx(150 / 151)


def test_a_slow_learner_leaves_generators_idle():
    """An update of 3 s: n of them take 3n + 1 s, and n groups of 1 s."""
    found = predict(model(50, update_seconds=3.0))
    assert found.seconds == 151.0
    assert found.generator["idle"] == pytest.approx(101 / 151)


def test_publication_pauses_and_taking_weights_cost_what_they_last():
    """Bound 0: 1 s sampling, 1 training, 2 publishing, then 4 in which weights are taken while the learner pauses 3."""
    found = predict(model(10, max_staleness=0, publish_seconds=2.0, pause_seconds=3.0, take_seconds=4.0))
    assert found.seconds == 9 * (1 + 1 + 2 + 4) + 1 + 1 + 2 + 3
    assert found.learner["publishing"] * found.seconds == pytest.approx(20)
    assert found.learner["other"] * found.seconds == pytest.approx(30)
    assert found.generator["updating"] * found.seconds == pytest.approx(9 * 4 + 3)


def test_groups_of_one_engine_share_its_throughput():
    """Batching 2: two groups at a time take 1.5 s each, four 2.5 s; so four prompts sample in 2.5 s."""
    found = predict(model(1, prompts_per_update=4, slots=4, batching=2.0))
    assert found.seconds == pytest.approx(2.5 + 1)
    assert found.sampling_rate == pytest.approx(4 / 2.5)


def test_an_engine_speeds_up_when_a_group_ends():
    """Batching 1 is one after the other: groups of 1 and 3 s share, so the first ends at 2 s and the second at 4 s."""
    run = Simulation(replace(model(1, prompts_per_update=2, slots=2, batching=1.0)))
    run._group_seconds = iter([1.0, 3.0])
    assert run.run().seconds == pytest.approx(4.0 + 1.0)


def test_a_group_whose_end_is_rounded_ends():
    """Clock and work of an engine run at different speeds. The end of a group came due, its work was a rounding error
    short, and the simulation foresaw the same end for ever."""
    engines = {"count": 4, "slots": 64, "batching": 16.0, "group_seconds": 12.0, "spread": 0.3}
    found = predict(model(1000, prompts_per_update=32, **engines, update_seconds=3.0 / 10.9, driver_seconds=0.001))
    assert found.updates == 1000


def test_judge_and_driver_take_one_group_after_the_other():
    """Four groups arrive at 1 s: the driver is done at 2, 3, 4, 5, and one judge of 2 s at 4, 6, 8, 10."""
    once = {"prompts_per_update": 4, "slots": 4, "driver_seconds": 1.0, "judge_seconds": 2.0}
    assert predict(model(1, **once)).seconds == 10 + 1
    assert predict(model(1, **once, judge_count=2)).seconds == 7 + 1


def test_cores_that_are_short_slow_all_who_want_them():
    """Generator and learner want a core each and share one: what overlaps takes twice as long, so 2 s per update."""
    assert predict(model(100, max_staleness=1)).seconds == 101.0
    assert predict(model(100, max_staleness=1, cores=1.0)).seconds == pytest.approx(200.0)


def test_publications_pauses_and_taking_weights_share_cores_too():
    """On one core all wait for one another, so an update costs the sum: 3 s of sampling, 1 of each other thing."""
    slow = model(100, group_seconds=3.0, max_staleness=3, publish_seconds=1.0, cores=1.0)
    assert predict(slow).seconds == pytest.approx(500.0, rel=0.01)
    more = model(100, max_staleness=3, publish_seconds=1.0, pause_seconds=1.0, take_seconds=1.0, cores=1.0)
    assert predict(more).seconds == pytest.approx(500.0, rel=0.01)


def test_an_evaluation_takes_places_before_leases():
    """Ten groups of 1 s after the second of three updates, bound 0: the third waits 10 s more."""
    plain = predict(model(3, max_staleness=0)).seconds
    assert predict(model(3, max_staleness=0, evaluation_every=2, evaluation_groups=10)).seconds == plain + 10


def test_a_failed_lease_is_granted_again_and_counts_as_discarded():
    found = predict(model(400, failure_share=0.2, max_attempts=50))
    assert found.discarded == pytest.approx(0.2, abs=0.05)
    assert found.generator["generating"] * found.seconds == pytest.approx(400 / 0.8, rel=0.1)


def test_a_lease_that_expires_is_granted_again():
    """Leases of 2 s for groups of 5 s expire each time; after two attempts their prompts are dropped."""
    found = predict(model(3, group_seconds=5.0, lease_seconds=2.0, max_attempts=2))
    assert found.discarded == 1.0


def test_ready_order_overtakes_stragglers_and_discards_what_became_too_old():
    """Bound 1 and long tails: a group that is overtaken for two versions is too old when it ends."""
    found = predict(model(300, order="ready", prompts_per_update=4, count=4, slots=2, spread=1.5, max_staleness=1))
    assert found.staleness_max <= 1
    assert 0.0 < found.discarded < 0.5


runs = some.fixed_dictionaries(
    {
        "updates": some.integers(1, 12),
        "prompts_per_update": some.integers(1, 4),
        "updates_per_publish": some.integers(1, 3),
        "max_staleness": some.integers(0, 3),
        "count": some.integers(1, 3),
        "slots": some.integers(1, 3),
        "group_seconds": some.integers(1, 5).map(float),
        "update_seconds": some.integers(1, 5).map(float),
        "publish_seconds": some.integers(0, 2).map(float),
        "pause_seconds": some.integers(0, 2).map(float),
        "take_seconds": some.integers(0, 3).map(float),
    }
)


@settings(max_examples=200, deadline=None)
@given(runs)
def test_it_equals_a_simulation_in_steps_of_one_second(chosen):
    fast, slow = Simulation(model(**chosen)).run(), Ticks(model(**chosen)).run()
    assert fast.seconds == slow.now
    assert dict(fast.staleness) == slow.staleness
    assert fast.learner["waiting"] == slow.waited
    if chosen["count"] == 1:  # with more, it depends on which of two equally loaded ones samples a group
        assert fast.generator["idle"] == slow.idle


@settings(max_examples=60, deadline=None)
@given(runs, some.sampled_from(["lease", "ready"]), some.floats(0.0, 2.0), some.floats(0.0, 0.3))
def test_no_group_is_older_than_the_bound_and_the_ledger_balances(chosen, order, spread, failing):
    run = Simulation(model(**chosen, order=order, spread=spread, failure_share=failing, max_attempts=30), seed=1)
    account = run.run()  # Admission raises RunError if its ledger does not balance
    assert account.updates == chosen["updates"]
    assert max(account.staleness, default=0) <= chosen["max_staleness"]
    assert sum(account.generator.values()) == pytest.approx(chosen["count"] * account.seconds)
    assert sum(account.learner.values()) == pytest.approx(account.seconds)


def test_it_drives_the_admission_of_the_product(monkeypatch):
    """Not a copy: what the product's class is asked for decides what is sampled."""
    run = Simulation(model(5))
    assert type(run.admission) is Admission
    assert simulation.Admission is Admission
    asked = Counter()

    class Watched(Admission):
        def grant(self, limit, now):
            granted = super().grant(limit, now)
            asked["granted"] += len(granted)
            return granted

        def judged(self, *answer):
            asked["judged"] += 1
            return super().judged(*answer)

        def take(self):
            taken = super().take()
            asked["taken"] += taken is not None
            return taken

        def published(self, version):
            asked["published"] += 1
            super().published(version)

    monkeypatch.setattr(simulation, "Admission", Watched)
    predict(model(6, prompts_per_update=2, updates_per_publish=2))
    assert asked == {"granted": 12, "judged": 12, "taken": 6, "published": 3}


def test_a_long_run_goes_on_as_its_second_half():
    """Bound 1: 101 s for 100 updates, so 1 s each for those that are not simulated, and one of the first at age 0."""
    run = Simulation(model(10_000))
    half, end = run.run(50), run.run(100)
    found = outcome(extrapolated(half, end, 10_000), 100)
    assert found.seconds == pytest.approx(10_001.0)
    assert found.updates == 10_000
    assert found.staleness[1] == pytest.approx(0.9999)
    assert predict(model(10_000), most_groups=100).figures()["simulated_updates"] == 100


def test_times_keep_their_mean_and_spread():
    draws = Times(2.0, 0.5).draws(random.Random(0))
    values = [next(draws) for _ in range(20_000)]
    mean = sum(values) / len(values)
    assert mean == pytest.approx(2.0, rel=0.02)
    assert (sum((each - mean) ** 2 for each in values) / len(values)) ** 0.5 == pytest.approx(1.0, rel=0.05)


def test_measured_times_come_once_each_before_any_comes_again():
    draws = Times.of(4.0, (1.0, 2.0, 3.0)).draws(random.Random(0))
    assert sorted(next(draws) for _ in range(3)) == [2.0, 4.0, 6.0]
    assert sorted(next(draws) for _ in range(3)) == [2.0, 4.0, 6.0]


def test_seconds_of_a_run_whose_cores_were_short_are_those_of_each_alone():
    """Generator and learner shared one core, so 1 s of each thing lasted longer. The shares of time lead back to it."""
    alone = model(100, max_staleness=1, publish_seconds=1.0, pause_seconds=1.0, take_seconds=1.0, cores=1.0)
    shared = predict(alone)
    seconds = {name: share * shared.seconds for name, share in shared.learner.items()}
    seconds["updating"] = shared.generator["updating"] * shared.seconds
    assert sum(seconds[name] for name in ("training", "publishing", "other")) > 350.0, "they seem to take longer"
    guess = model(
        max_staleness=1,
        group_seconds=1.0 / shared.sampling_rate,
        update_seconds=seconds["training"] / 100,
        publish_seconds=seconds["publishing"] / 100,
        pause_seconds=seconds["other"] / 100,
        take_seconds=seconds["updating"] / 100,
        cores=1.0,
    )
    found = calibrated(guess, shared.sampling_rate, seconds)
    learner, generators = found.learner, found.generators
    for each in (learner.update.mean, learner.publish_seconds, learner.pause_seconds, generators.take_seconds):
        assert each == pytest.approx(1.0, rel=0.05)
    assert generators.group.mean == pytest.approx(1.0, rel=0.05)
