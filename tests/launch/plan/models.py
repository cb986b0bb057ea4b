"""Models of runs with round numbers, and a slow independent simulation to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.replay_buffer.config import ReplayConfig
from launch.plan.model import Generators, Judges, Learner, Model, Times


def model(updates: int = 100, **settings: Any) -> Model:
    """One generator of 1 s a group, one group at a time; a learner of 1 s an update of one prompt."""
    replay = {"prompts_per_update": 1, **{name: settings.pop(name) for name in REPLAY if name in settings}}
    generators = {"group": Times(settings.pop("group_seconds", 1.0), settings.pop("spread", 0.0))}
    generators |= {name: settings.pop(name) for name in GENERATORS if name in settings}
    learner = {"update": Times(settings.pop("update_seconds", 1.0))}
    learner |= {name: settings.pop(name) for name in LEARNER if name in settings}
    judges = {name.removeprefix("judge_"): settings.pop(name) for name in JUDGES if name in settings}
    return Model(
        replay=ReplayConfig(**replay),
        updates=updates,
        generators=Generators(**generators),
        learner=Learner(**learner),
        judges=Judges(**judges),
        **settings,
    )


REPLAY = tuple(ReplayConfig.model_fields)
GENERATORS = ("count", "slots", "batching", "take_seconds", "failure_share")
LEARNER = ("publish_seconds", "pause_seconds")
JUDGES = ("judge_seconds", "judge_count", "driver_seconds")


@dataclass
class Ticks:
    """The same run in steps of one second, lease order, by the rules of docs/staleness.md; nothing of it is shared.

    Times are whole seconds; groups at one generator do not slow each other down.
    """

    model: Model
    now: int = 0
    places: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """Of each generator: lease, version and seconds left of each group that it samples."""
    judged: dict[int, int] = field(default_factory=dict)
    """By lease: its version."""
    version: int = 0
    leases: int = 0
    done: int = 0
    """Updates that were begun."""
    learner: list[tuple[str, int]] = field(default_factory=list)
    """What it does next, with the seconds left of each."""
    takes: list[tuple[int, int]] = field(default_factory=list)
    """Versions that generators take, with the seconds left."""
    staleness: dict[int, int] = field(default_factory=dict)
    waited: int = 0
    idle: int = 0

    def run(self) -> Ticks:
        self.places = [[] for _ in range(self.model.generators.count)]
        while True:
            self.settle()
            if self.done == self.model.updates and not self.learner:
                return self
            self.tick()

    def settle(self) -> None:
        replay, generators = self.model.replay, self.model.generators
        first = self.done * replay.prompts_per_update
        wanted = range(first, first + replay.prompts_per_update)
        if not self.learner and self.done < self.model.updates and all(lease in self.judged for lease in wanted):
            trained = self.done // replay.updates_per_publish
            for lease in wanted:
                age = trained - self.judged[lease]
                self.staleness[age] = self.staleness.get(age, 0) + 1
            self.done += 1
            self.learner = [("training", int(self.model.learner.update.mean))]
            if self.done % replay.updates_per_publish == 0:
                self.learner.append(("publishing", int(self.model.learner.publish_seconds)))
            self.learner.append(("other", int(self.model.learner.pause_seconds)))
        per_version = replay.prompts_per_update * replay.updates_per_publish
        most = self.model.updates * replay.prompts_per_update
        while self.leases < min((self.version + replay.max_staleness + 1) * per_version, most):
            place = min(self.places, key=len)
            if len(place) == generators.slots:
                return
            place.append((self.leases, self.version, int(generators.group.mean)))
            self.leases += 1

    def tick(self) -> None:
        """Let one second pass, then end what has no second left."""
        self.now += 1
        taking = bool(self.takes)
        self.waited += not self.learner
        self.idle += 0 if taking else sum(not place for place in self.places)
        if not taking:
            self.places = [[(lease, version, left - 1) for lease, version, left in place] for place in self.places]
        if taking:
            self.takes[0] = (self.takes[0][0], self.takes[0][1] - 1)
        if self.learner:
            self.learner[0] = (self.learner[0][0], self.learner[0][1] - 1)
        while self.learner and self.learner[0][1] == 0:
            activity, _ = self.learner.pop(0)
            if activity == "publishing":
                published = (self.done // self.model.replay.updates_per_publish, self.take_seconds)
                self.takes = [*self.takes[:1], published]
        while self.takes and self.takes[0][1] == 0:
            self.version, _ = self.takes.pop(0)
        for place in self.places:
            self.judged |= {lease: version for lease, version, left in place if left == 0}
            place[:] = [each for each in place if each[2] > 0]

    @property
    def take_seconds(self) -> int:
        return int(self.model.generators.take_seconds)
