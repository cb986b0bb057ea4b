"""Admission: which prompts may be generated now, and which groups the next update consumes, within the staleness bound.

A pure state machine over lease indices. It must not know prompts, tokens, actors or a clock: time is an argument, and
`buffer.py` keeps what the indices stand for. It is driven from one thread.

Units. b = `prompts_per_update`, k = `updates_per_publish`, B = b*k prompts per version, S = `max_staleness`.
Update u trains version floor(u/k); v is the published version, which lags behind that and never leads it.

The bound. Give every lease a place p in the queue of consumption. It is consumed by update floor(p/b), which trains
version floor(p/B). A lease is granted only while v >= floor(p/B) - S, with `min_version` = max(0, floor(p/B) - S), and
so all its tokens are at most S versions old when consumed, however far v lags. Solved for p, both orders admit while

    p < (v + S + 1) * B

* `lease` order: p is the lease index, and update u consumes exactly the leases [ub, (u+1)b). Places are certain, so
  nothing is ever over the bound.
* `ready` order: p = consumed + buffered + in flight, with consumed = ub counted in places, so that a reused group
  takes one each time. Stragglers are overtaken, so places are estimates: a sweep at every consumption discards what
  is over S.

No deadlock. When v has caught up, u < (v + 1)k, so at least SB + b places are open beyond the ub consumed ones: the b
groups of the next update can always be granted. A failure, an expiry or a discard gives its place back at once.

A discarded or failed prompt is granted again under its old index with the next attempt number, before any new prompt;
after `max_attempts` failures it is dropped for good. Every prompt is accounted for exactly once, and so is every grant:

    offered = waiting + in flight + buffered + trained + dropped        (prompts)
    leased  = in flight + buffered + trained + returned + dropped       (grants)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from itertools import chain, count
from typing import Any

from actors.errors import RunError, UsageError
from actors.replay_buffer.config import ReplayConfig

STALE = "stale"
EXPIRED = "expired"
RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to generate for lease `index`. Made by `Admission.grant`; turned into a `Lease` by the buffer."""

    index: int
    attempt: int
    min_version: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Take:
    """What one update consumes. Made by `Admission.take`; turned into a `Batch` by the buffer."""

    update: int
    version: int
    """The version that the update trains; `staleness` is counted from it."""
    indices: tuple[int, ...]
    """Empty when every lease of the update was dropped: the update has nothing to train on, and the run goes on."""
    staleness: tuple[int, ...]
    """Policy versions, one per index, each between 0 and `max_staleness`."""


@dataclass(slots=True)
class _Entry:
    """How far the prompt of one lease has come."""

    attempt: int = 0
    failures: int = 0
    """Grants that came to nothing; a restart of the run is nobody's failure and is not among them."""
    deadline: float = 0.0
    generated: bool = False
    oldest_version: int = 0
    uses: int = 0
    held: bool = False
    """It waits on purpose, for opponents say: its deadline does not count."""


class Admission:
    """Grants leases, takes answers and chooses batches, with staleness at most `config.max_staleness`.

    `total_updates`: updates in the whole run; no lease beyond the last one is granted. None: no end.
    Raises UsageError for settings that no run could meet.
    """

    def __init__(self, config: ReplayConfig, total_updates: int | None = None) -> None:
        _refuse_unmeetable(config, total_updates)
        self.config = config
        self.total_updates = total_updates
        self.version = 0
        self.updates = 0
        self._next_index = 0
        self._waiting: dict[int, _Entry] = {}
        self._in_flight: dict[int, _Entry] = {}
        self._buffered: dict[int, _Entry] = {}
        self._reusable: dict[int, _Entry] = {}
        self._gaps: set[int] = set()
        """Lease order: dropped leases whose update is still to come."""
        self._counts: Counter[str] = Counter()
        self._returned: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    @property
    def training_version(self) -> int:
        """The version that the next update trains; the published `version` is never above it."""
        return self.updates // self.config.updates_per_publish

    @property
    def in_flight(self) -> int:
        """Leases that are being generated, held or judged."""
        return len(self._in_flight)

    @property
    def buffered(self) -> int:
        """Judged groups that no update has consumed yet."""
        return len(self._buffered)

    def holds(self, index: int) -> bool:
        """Whether an update may still consume the group of lease `index`."""
        return index in self._buffered or index in self._reusable

    def ages(self) -> list[int]:
        """Staleness, in versions, that each group would have if the next update consumed it."""
        held = chain(self._buffered.values(), self._reusable.values())
        return [self.training_version - entry.oldest_version for entry in held]

    def grant(self, limit: int, now: float) -> list[Grant]:
        """At most `limit` leases, valid for `lease_seconds`: those to grant again first, by index, then new ones."""
        grants: list[Grant] = []
        for index in chain(sorted(self._waiting), count(self._next_index)):
            place = self._place(index)
            if len(grants) >= limit or place >= self._places():
                break
            entry = self._waiting.pop(index, None)
            if entry is None:
                entry = _Entry()
                self._next_index += 1
            entry.deadline = now + self.config.lease_seconds
            self._in_flight[index] = entry
            self._counts["leased"] += 1
            min_version = max(0, place // self.config.prompts_per_version - self.config.max_staleness)
            grants.append(Grant(index, entry.attempt, min_version, entry.deadline))
        self._check()
        return grants

    def generated(self, index: int, attempt: int) -> bool:
        """The lease's completions exist and go to a judge. False: a late or second answer, ignored and counted."""
        entry = self._current(index, attempt)
        if entry is None or entry.generated:
            self._counts["late"] += 1
            return False
        entry.generated = True
        self._counts["generated"] += 1
        return True

    def hold(self, index: int, attempt: int) -> bool:
        """The lease waits on purpose and does not expire until `release`. False: a late answer, ignored and counted."""
        entry = self._current(index, attempt)
        if entry is None:
            self._counts["late"] += 1
            return False
        entry.held = True
        return True

    def release(self, index: int, attempt: int, now: float) -> bool:
        """Ends `hold`: the lease has `lease_seconds` from `now`. False: a late answer, ignored and counted."""
        entry = self._current(index, attempt)
        if entry is None:
            self._counts["late"] += 1
            return False
        entry.held = False
        entry.deadline = now + self.config.lease_seconds
        return True

    def judged(self, index: int, attempt: int, oldest_version: int, newest_version: int) -> bool:
        """The lease's group is judged; its tokens span the two versions. False: a late answer, ignored and counted.

        Raises RunError for a version that the learner has not made.
        """
        entry = self._current(index, attempt)
        if entry is None:
            self._counts["late"] += 1
            return False
        if newest_version > self.training_version:
            raise RunError(
                f"lease {index} came back with tokens of policy version {newest_version}, but the learner has made "
                f"versions up to {self.training_version} only; a generator of another run, or from before a resume, "
                "still answers: stop it"
            )
        if not entry.generated:
            self.generated(index, attempt)
        entry.oldest_version = oldest_version
        self._buffered[index] = self._in_flight.pop(index)
        self._counts["judged"] += 1
        self._check()
        return True

    def returned(self, index: int, attempt: int, reason: str) -> bool:
        """The lease came to nothing. It is granted again, or dropped after `max_attempts`. False: a late answer."""
        if self._current(index, attempt) is None:
            self._counts["late"] += 1
            return False
        self._fail(index, self._in_flight.pop(index), reason)
        self._check()
        return True

    def lost(self, indices: Iterable[int], reason: str) -> list[int]:
        """Returns those of `indices` that were being generated; what is already with a judge is not lost."""
        gone = [index for index in indices if index in self._in_flight and not self._in_flight[index].generated]
        for index in gone:
            self.returned(index, self._in_flight[index].attempt, reason)
        return gone

    def expire(self, now: float) -> list[int]:
        """Returns every lease whose deadline has passed and that is not held."""
        late = [index for index, entry in self._in_flight.items() if not entry.held and entry.deadline <= now]
        for index in late:
            self.returned(index, self._in_flight[index].attempt, EXPIRED)
        return late

    def take(self) -> Take | None:
        """The next update's groups, or None while they are not all there (and after the last update).

        Whatever is over the bound is discarded first, in either order and whether or not the update is ready.
        """
        if self.updates == self.total_updates:
            return None
        self._sweep()
        indices = self._in_lease_order() if self.config.order == "lease" else self._in_ready_order()
        self._check()
        if indices is None:
            return None
        version = self.training_version
        staleness = tuple(version - self._consume(index).oldest_version for index in indices)
        self._gaps.difference_update(self._span())
        self._counts["empty_updates"] += not indices
        self.updates += 1
        self._check()
        return Take(self.updates - 1, version, tuple(indices), staleness)

    def published(self, version: int) -> None:
        """Generators have acknowledged `version`. Saying it twice is harmless; versions may be skipped.

        Call it for every k-th update, empty ones included: the grants of later leases wait for it.
        Raises RunError for a version below the last one or above what the learner has made.
        """
        if not self.version <= version <= self.training_version:
            raise RunError(
                f"version {version} cannot be published after {self.updates} updates with updates_per_publish "
                f"{self.config.updates_per_publish}: it must be at least {self.version}, the last one published, and "
                f"at most {self.training_version}, the last one trained"
            )
        self.version = version

    def ledger(self) -> dict[str, Any]:
        """Counts since the start of the run, by reason where there are several; the module docstring has the sums.

        `reused`: consumptions beyond a group's first. `late`: answers ignored because their lease had moved on.
        """
        counts = ("leased", "generated", "judged", "trained", "reused", "late", "empty_updates")
        return {
            "offered": self._next_index,
            **{name: self._counts[name] for name in counts},
            "returned": dict(self._returned),
            "dropped": dict(self._dropped),
            "waiting": len(self._waiting),
            "in_flight": len(self._in_flight),
            "buffered": len(self._buffered),
        }

    def settled(self, below: int) -> bool:
        """Whether every lease before `below` has been granted and nothing of it is waiting or in flight."""
        return self._next_index >= below and not any(index < below for index in chain(self._waiting, self._in_flight))

    def state_dict(self, *, below: int | None = None) -> dict[str, Any]:
        """Everything, as JSON-able values. Save it when no taken batch is waiting to be trained: it would be lost.

        `below`: leases from this one on are saved as if they were in flight still; None: as they are.
        """
        later = {i: entry for i, entry in self._buffered.items() if below is not None and i >= below}
        places = {"waiting": self._waiting, "in_flight": self._in_flight | later}
        places |= {"buffered": {i: entry for i, entry in self._buffered.items() if i not in later}}
        places |= {"reusable": self._reusable}
        return {
            **{name: getattr(self.config, name) for name in _FIXED_BY_STATE},
            "version": self.version,
            "updates": self.updates,
            "next_index": self._next_index,
            "entries": {name: [[i, *astuple(entry)] for i, entry in held.items()] for name, held in places.items()},
            "gaps": sorted(self._gaps),
            "counts": dict(self._counts),
            "returned": dict(self._returned),
            "dropped": dict(self._dropped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`. What was in flight is granted again, returned for the reason `restart`.

        `max_staleness`, `max_reuse`, `max_attempts` and `lease_seconds` may differ from the saved run's.
        Raises UsageError for settings that may not.
        """
        for name in _FIXED_BY_STATE:
            if state[name] != getattr(self.config, name):
                raise UsageError(
                    f"replay.{name} is {getattr(self.config, name)!r}, but the run to resume was saved with "
                    f"{state[name]!r}, on which its leases and versions rest; set it back, or start a new run"
                )
        if self.total_updates is not None and self.total_updates < state["updates"]:
            raise UsageError(
                f"{self.total_updates} updates in all are fewer than the {state['updates']} that the run to resume has "
                "done; raise updates"
            )
        self.version, self.updates, self._next_index = state["version"], state["updates"], state["next_index"]
        entries = {name: {row[0]: _Entry(*row[1:]) for row in rows} for name, rows in state["entries"].items()}
        self._waiting, self._in_flight = entries["waiting"], entries["in_flight"]
        self._buffered, self._reusable = entries["buffered"], entries["reusable"]
        self._gaps = set(state["gaps"])
        self._counts, self._returned = Counter(state["counts"]), Counter(state["returned"])
        self._dropped = Counter(state["dropped"])
        for index in list(self._in_flight):
            self._wait(index, self._in_flight.pop(index), RESTART)
        self._check()

    def _places(self) -> int:
        """Places open at the published version: the bound of the module docstring, and the end of the run."""
        places = (self.version + self.config.max_staleness + 1) * self.config.prompts_per_version
        if self.total_updates is None:
            return places
        return min(places, self.total_updates * self.config.prompts_per_update)

    def _place(self, index: int) -> int:
        """Where in the queue of consumption lease `index` would stand if it were granted now."""
        if self.config.order == "lease":
            return index
        return self.updates * self.config.prompts_per_update + len(self._buffered) + len(self._in_flight)

    def _current(self, index: int, attempt: int) -> _Entry | None:
        entry = self._in_flight.get(index)
        return entry if entry is not None and entry.attempt == attempt else None

    def _fail(self, index: int, entry: _Entry, reason: str) -> None:
        entry.failures += 1
        if entry.failures < self.config.max_attempts:
            self._wait(index, entry, reason)
            return
        self._dropped[reason] += 1
        if self.config.order == "lease":
            self._gaps.add(index)

    def _wait(self, index: int, entry: _Entry, reason: str) -> None:
        self._returned[reason] += 1
        self._waiting[index] = _Entry(attempt=entry.attempt + 1, failures=entry.failures)

    def _sweep(self) -> None:
        """Discards what is over the bound. A group that was trained before is only forgotten: it has done its part."""
        for index in [index for index, entry in self._buffered.items() if self._over_bound(index, entry)]:
            self._fail(index, self._buffered.pop(index), STALE)
        for index in [index for index, entry in self._reusable.items() if self._over_bound(index, entry)]:
            del self._reusable[index]

    def _over_bound(self, index: int, entry: _Entry) -> bool:
        lease_order = self.config.order == "lease"
        due = index // self.config.prompts_per_version if lease_order else self.training_version
        return due - entry.oldest_version > self.config.max_staleness

    def _span(self) -> range:
        """Lease order: the next update's leases."""
        start = self.updates * self.config.prompts_per_update
        return range(start, start + self.config.prompts_per_update)

    def _in_lease_order(self) -> list[int] | None:
        span = self._span()
        if all(index in self._buffered or index in self._gaps for index in span):
            return [index for index in span if index in self._buffered]
        return None

    def _in_ready_order(self) -> list[int] | None:
        """Oldest tokens first. What was never trained goes before any reuse, which fills up what generation lacks."""
        held = self._buffered | self._reusable
        ranked = sorted(held, key=lambda index: (held[index].uses, held[index].oldest_version, index))
        wanted = self.config.prompts_per_update
        return ranked[:wanted] if len(ranked) >= wanted else None

    def _consume(self, index: int) -> _Entry:
        first_use = index in self._buffered
        entry = self._buffered.pop(index) if first_use else self._reusable.pop(index)
        self._counts["trained" if first_use else "reused"] += 1
        entry.uses += 1
        if entry.uses < self.config.max_reuse:
            self._reusable[index] = entry
        return entry

    def _check(self) -> None:
        """A prompt or a grant that went missing stops the run here."""
        if text := imbalance(self.ledger()):
            raise RunError(f"the ledger does not balance: {text}; this is a defect of Offbeat, please report it")


def imbalance(ledger: Mapping[str, Any]) -> str:
    """Which of the two sums of the module docstring a ledger breaks, with its numbers; empty when both hold."""
    returned, dropped = sum(ledger["returned"].values()), sum(ledger["dropped"].values())
    settled = ledger["in_flight"] + ledger["buffered"] + ledger["trained"] + dropped
    broken = []
    if ledger["offered"] != settled + ledger["waiting"]:
        broken.append(f"{ledger['offered']} prompts offered, {settled + ledger['waiting']} accounted for")
    if ledger["leased"] != settled + returned:
        broken.append(f"{ledger['leased']} grants, {settled + returned} accounted for")
    return ", ".join(broken)


_FIXED_BY_STATE = ("order", "prompts_per_update", "updates_per_publish")


def _refuse_unmeetable(config: ReplayConfig, total_updates: int | None) -> None:
    if total_updates is not None and total_updates < 1:
        raise UsageError(f"total_updates {total_updates} leaves nothing to do; it must be at least 1")
    # A token of version v is at most S old in the updates [vk, (v + S + 1)k) alone.
    chances = (config.max_staleness + 1) * config.updates_per_publish
    if config.max_reuse > chances:
        raise UsageError(
            f"replay.max_reuse {config.max_reuse} can never be met: with max_staleness {config.max_staleness} and "
            f"updates_per_publish {config.updates_per_publish} a group stays within the bound for {chances} updates at "
            f"most; lower max_reuse to {chances} or raise max_staleness"
        )
