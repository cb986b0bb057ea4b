"""A run in virtual time: discrete events around `Admission`, the state machine that a run uses.

At each instant everything that ends does so; then the learner takes a batch if it waits for one, then leases are dealt.
Evaluations take places at the generators first, as in a run. Must not know files, Ray or a clock.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from actors.errors import UsageError
from actors.replay_buffer.admission import Admission
from launch.plan.engines import ROUNDING, Fleet, Running
from launch.plan.model import Model

ASIDE = -1
"""Index of a group that is sampled for an evaluation."""
GENERATOR = ("generating", "updating", "idle")
LEARNER = ("training", "waiting", "publishing", "other")
"""States of a generator, and of the learner."""
MOST_LEASES = 1_000  # of which none ends in a batch
EXPIRY_CHECKS = 4  # in the seconds that a lease is valid


@dataclass(slots=True)
class Account:
    """Counts up to one moment."""

    seconds: float = 0.0
    updates: int = 0
    generator: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GENERATOR, 0.0))
    """Seconds by activity, summed over the generators."""
    learner: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEARNER, 0.0))
    staleness: Counter[int] = field(default_factory=Counter)
    """Groups consumed, by staleness in versions."""
    ledger: dict[str, Any] = field(default_factory=dict)
    sampled: int = 0
    """Groups that generators have sampled, those of evaluations included."""

    def copy(self) -> Account:
        """Return the counts now."""
        generator, learner, staleness = dict(self.generator), dict(self.learner), Counter(self.staleness)
        return Account(self.seconds, self.updates, generator, learner, staleness, dict(self.ledger), self.sampled)


class Simulation:
    """One run of `model`, from the moment when generators hold version 0."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        self.model = model
        self.admission = Admission(model.replay, model.updates)
        self.account = Account()
        self.now = 0.0
        self._random = Random(seed)
        self._group_seconds = model.generators.group.draws(self._random)
        self._update_seconds = model.learner.update.draws(self._random)
        self._fleet = Fleet(model.generators)
        self._version = 0  # that all generators hold
        self._offered = 0  # the newest publication
        self._taking, self._take_left, self._coming = False, math.inf, 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._activity, self._left = "waiting", math.inf
        self._aside = 0
        self._starved = False
        """Admission grants nothing until something changes."""
        self._checks = 0
        """Checks of the leases since the learner began to wait."""
        self._driver_free = 0.0
        self._judges_free = [0.0] * model.judges.count

    def run(self, updates: int | None = None) -> Account:
        """Go on until `updates` updates are done in all; None: to the end of the run. Return a copy of the account."""
        wanted = self.model.updates if updates is None else min(updates, self.model.updates)
        if not self._events:
            self._expire()
        while self.account.updates < wanted:
            self._settle()
            self._step()
        self.account.ledger = self.admission.ledger()
        return self.account.copy()

    # ---------------------------------------------------------------- time

    def _step(self) -> None:
        """Go to the next instant at which something ends, and end it."""
        speed, fleet = self._speed(), self._fleet
        ends = math.inf if self._taking else self.now + (fleet.next_end - fleet.clock) / speed
        taken = self.now + self._take_left / speed
        learned = self.now + self._left / speed
        then = min(self._events[0][0], ends, taken, learned)
        self._pass(then, speed)
        if ends <= then:
            fleet.clock = fleet.next_end  # exactly, so that equal times stay equal
        limit = then + ROUNDING * max(1.0, then)
        if taken <= limit:
            self._taken()
        if learned <= limit:
            self._left = 0.0
            self._learner_ends()
        for group in fleet.ended():
            self._sampled(group)
        while self._events[0][0] <= limit:
            _, _, happen, arguments = heapq.heappop(self._events)
            happen(*arguments)

    def _speed(self) -> float:
        """Return how fast generators and the learner work, 1 being at full speed."""
        model = self.model
        if model.cores is None:
            return 1.0
        works = self._activity != "waiting"
        at_work = model.generators.count if self._taking else self._fleet.active
        busy = at_work * model.generators.cpus + works * model.learner.cpus
        return min(1.0, model.cores / busy) if busy else 1.0

    def _pass(self, then: float, speed: float) -> None:
        """Let the time go by in which generators and the learner do `speed` times what they do alone."""
        seconds, account, all_ = then - self.now, self.account, self.model.generators.count
        active = self._fleet.active
        if self._taking:
            account.generator["updating"] += all_ * seconds
            self._take_left -= seconds * speed
        else:
            account.generator["generating"] += active * seconds
            account.generator["idle"] += (all_ - active) * seconds
            self._fleet.clock += seconds * speed
        account.learner[self._activity] += seconds
        self._left -= seconds * speed
        self.now = account.seconds = then

    def _at(self, then: float, happen: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (then, next(self._order), happen, arguments))

    # ---------------------------------------------------------------- generators, judges

    def _settle(self) -> None:
        if self._activity == "waiting":
            self._take_batch()
        self._deal()

    def _deal(self) -> None:
        fleet, seconds = self._fleet, self._group_seconds
        room = fleet.room
        aside = min(room, self._aside)
        self._aside -= aside
        for _ in range(aside):
            fleet.start(next(seconds), ASIDE, 0, self._version)
        room -= aside
        if room and not self._starved:
            grants = self.admission.grant(room, self.now)
            self._starved = len(grants) < room
            for grant in grants:
                assert grant.min_version <= self._version
                fleet.start(next(seconds), grant.index, grant.attempt, self._version)
        fleet.started()

    def _sampled(self, group: Running) -> None:
        """Send the group through the driver to the judge that is free first."""
        self.account.sampled += 1
        if group.lease == ASIDE:
            return
        failing = self.model.generators.failure_share
        if failing and self._random.random() < failing:
            self._starved = False
            self.admission.returned(group.lease, group.attempt, "failed")
            return
        if not self.admission.generated(group.lease, group.attempt):
            return
        judges = self.model.judges
        arrived = self._driver_free = max(self._driver_free, self.now) + judges.driver_seconds
        judged = max(self._judges_free[0], arrived) + judges.seconds
        heapq.heapreplace(self._judges_free, judged)
        if judged > self.now:
            self._at(judged, self._judged, group)
        else:
            self._judged(group)

    def _judged(self, group: Running) -> None:
        self.admission.judged(group.lease, group.attempt, group.version, group.version)

    def _expire(self) -> None:
        lease, waits = self.model.replay.lease_seconds, self._activity == "waiting"
        if self.admission.expire(self.now):
            self._starved = False
        self._checks = self._checks + 1 if waits else 0
        if self._checks > MOST_LEASES * EXPIRY_CHECKS:
            raise UsageError(
                f"the learner waits for {MOST_LEASES} times replay.lease_seconds {lease:g} without a batch: groups "
                "take longer than their leases; raise that with --set, or lower --generator-seconds"
            )
        # During an update much longer than a lease, looking as often would take long and change nothing.
        self._at(self.now + (lease if waits else max(lease, self._left)) / EXPIRY_CHECKS, self._expire)

    # ---------------------------------------------------------------- learner, versions

    def _take_batch(self) -> None:
        replay = self.model.replay
        certain = replay.order == "lease" and not self.model.generators.failure_share
        if certain and self.admission.buffered < replay.prompts_per_update and not self._late:
            return
        held = self.admission.held
        batch = self.admission.take()
        if batch is None:
            self._starved = self._starved and held == self.admission.held  # discarded groups give their places back
            return
        self._starved = False
        self.account.staleness.update(batch.staleness)
        self._activity, self._left = "training", next(self._update_seconds) if batch.indices else 0.0

    @property
    def _late(self) -> bool:
        """Return whether leases may have been dropped because they expired."""
        return self.now >= self.model.replay.lease_seconds

    def _learner_ends(self) -> None:
        """Go on to what comes after the learner's activity; what takes no time ends at once."""
        learner, replay = self.model.learner, self.model.replay
        done = self.admission.updates
        while self._left <= 0.0:
            if self._activity == "training" and done % replay.updates_per_publish == 0:
                self._activity, self._left = "publishing", learner.publish_seconds
            elif self._activity in ("training", "publishing"):
                if self._activity == "publishing":
                    self._publish(done // replay.updates_per_publish)
                self._activity, self._left = "other", learner.pause_seconds
            else:
                self._activity, self._left = "waiting", math.inf
                self.account.updates = done
                every = self.model.evaluation_every
                if every and done % every == 0 and done < self.model.updates:
                    self._aside += self.model.evaluation_groups

    def _publish(self, version: int) -> None:
        self._offered = version
        if not self._taking:
            self._begin_taking()

    def _begin_taking(self) -> None:
        self._taking, self._take_left, self._coming = True, self.model.generators.take_seconds, self._offered
        if not self._take_left:
            self._taken()

    def _taken(self) -> None:
        """All generators hold a version; what was published meanwhile comes next, and versions between are skipped."""
        self._version, self._starved = self._coming, False
        self._taking, self._take_left = False, math.inf
        self.admission.published(self._version)
        if self._offered > self._version:
            self._begin_taking()
