"""Admission: decide which prompts may be generated and which groups an update consumes, within the staleness bound.

A pure state machine over lease indices, driven from one thread; time is an argument. Must not depend on prompts,
tokens, actors or a clock: `buffer.py` keeps what the indices stand for.

Units. b = `prompts_per_update`, k = `updates_per_publish`, B = b*k prompts per version, S = `max_staleness`.
Update u trains version floor(u/k). The published version v lags behind that and never leads it.

The bound. Every lease has a place p in the queue of consumption. Update floor(p/b) consumes it and trains version
floor(p/B). A lease is granted only while v >= floor(p/B) - S, with `min_version` = max(0, floor(p/B) - S). Versions
never decrease along a completion, so its tokens are at most S versions old when consumed, however far v lags. Solved
for p, both orders admit while

    p < (v + S + 1) * B

* `lease` order: p is the lease index, and update u consumes exactly the leases [ub, (u+1)b). Places are certain, so
  no group ever exceeds the bound.
* `ready` order: p = consumed + buffered + in flight. Consumed = ub counts places, so a reused group takes one each
  time. Stragglers can be overtaken, so places are estimates: a sweep at every consumption discards groups older than S.

No deadlock. When v has caught up, u < (v + 1)k, so at least SB + b places are open beyond the ub consumed ones: the b
groups of the next update can always be granted. A failure, an expiry or a discard frees its place at once.

A failed or discarded prompt is granted again under its old index with the next attempt number, before any new prompt.
After `max_attempts` failures it is dropped. The ledger counts every prompt and every grant once: see `ledger.py`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import chain, count
from typing import Any

from actors.errors import RunError, UsageError
from actors.foreign.text import by_kind, count_reason
from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.ledger import imbalance

_FIXED_BY_STATE = ("order", "prompts_per_update", "updates_per_publish")


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to generate lease `index`. Made by `Admission.grant`; `ReplayBuffer` makes a `Lease` of it."""

    index: int
    attempt: int
    min_version: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Take:
    """Leases that one update consumes. Made by `Admission.take`; `ReplayBuffer` makes a `Batch` of it."""

    update: int
    version: int
    indices: tuple[int, ...]
    """Consumed leases. Empty if every lease of the update was dropped; the run continues."""
    staleness: tuple[int, ...]
    """`version` minus the oldest token version, per index; between 0 and `max_staleness`."""


@dataclass(slots=True)
class _Entry:
    """Progress of one lease's prompt."""

    attempt: int = 0
    failures: int = 0
    """Failed grants; a restart of the run does not count."""
    deadline: float = 0.0
    generated: bool = False
    oldest_version: int = 0
    uses: int = 0
    held: bool = False
    """True while it waits on purpose, for opponents for example, so that it does not expire."""


class Admission:
    """Grants leases, records answers and chooses batches, with staleness at most `config.max_staleness`.

    `total_updates`: updates of the whole run, beyond which no lease is granted; None: no end. Raises UsageError if
    `config.max_reuse` can never be met. A report on a grant whose lease has moved on returns False and counts as late.
    """

    def __init__(self, config: ReplayConfig, total_updates: int | None = None) -> None:
        if config.max_reuse > config.most_uses:
            raise UsageError(
                f"replay.max_reuse {config.max_reuse} can never be met: with max_staleness {config.max_staleness} and "
                f"updates_per_publish {config.updates_per_publish} a group stays within the bound for at most "
                f"{config.most_uses} updates; lower max_reuse to {config.most_uses} or raise max_staleness"
            )
        self.config = config
        self.total_updates = total_updates
        self.version = 0
        self.updates = 0
        self._next_index = 0
        self._waiting: dict[int, _Entry] = {}
        self._in_flight: dict[int, _Entry] = {}
        self._buffered: dict[int, _Entry] = {}
        self._reusable: dict[int, _Entry] = {}
        self._unswept: list[int] = []  # buffered since the last sweep
        self._swept_version: int | None = None
        self._gaps: set[int] = set()  # dropped leases of future updates, in lease order
        self._counts: Counter[str] = Counter()
        self._returned, self._dropped = Counter[str](), Counter[str]()

    @property
    def training_version(self) -> int:
        """Policy version that the next update trains; at least the published `version`."""
        return self.updates // self.config.updates_per_publish

    @property
    def in_flight(self) -> int:
        """Number of leases being generated, held or judged."""
        return len(self._in_flight)

    @property
    def buffered(self) -> int:
        """Number of judged groups that no update has consumed yet."""
        return len(self._buffered)

    @property
    def held(self) -> int:
        """Number of groups that an update may still consume."""
        return len(self._buffered) + len(self._reusable)

    def holds(self, index: int) -> bool:
        """Return whether an update may still consume the group of lease `index`."""
        return index in self._buffered or index in self._reusable

    def ages(self) -> list[int]:
        """Return the staleness (versions) that each held group would have in the next update."""
        return [self.training_version - entry.oldest_version for entry in (self._buffered | self._reusable).values()]

    def grant(self, limit: int, now: float) -> list[Grant]:
        """Grant at most `limit` leases, valid for `lease_seconds`: returned ones first, by index, then new ones."""
        grants: list[Grant] = []
        for index in chain(sorted(self._waiting), count(self._next_index)):
            place = self._place(index)
            if len(grants) >= limit or place >= self._places():
                break
            entry = self._in_flight[index] = self._waiting.pop(index, _Entry())
            entry.deadline = now + self.config.lease_seconds
            self._next_index = max(self._next_index, index + 1)
            self._counts["leased"] += 1
            min_version = max(0, place // self.config.prompts_per_version - self.config.max_staleness)
            grants.append(Grant(index, entry.attempt, min_version, entry.deadline))
        self._check()
        return grants

    def generated(self, index: int, attempt: int) -> bool:
        """Record that the lease's completions exist and go to a judge. A second report counts as late."""
        entry = self._current(index, attempt, ungenerated=True)
        if entry is None:
            return False
        entry.generated = True
        self._counts["generated"] += 1
        return True

    def hold(self, index: int, attempt: int) -> bool:
        """Exempt the lease from expiry until `release`."""
        entry = self._current(index, attempt)
        if entry is not None:
            entry.held = True
        return entry is not None

    def release(self, index: int, attempt: int, now: float) -> bool:
        """End `hold`: the lease expires `lease_seconds` after `now`."""
        entry = self._current(index, attempt)
        if entry is not None:
            entry.held, entry.deadline = False, now + self.config.lease_seconds
        return entry is not None

    def judged(self, index: int, attempt: int, oldest_version: int, newest_version: int) -> bool:
        """Buffer the lease's judged group, whose tokens span the two versions.

        Raises RunError for a version that the learner has not made.
        """
        entry = self._current(index, attempt)
        if entry is None:
            return False
        if newest_version > self.training_version:
            raise RunError(
                f"lease {index} came back with tokens of policy version {newest_version}, but the learner has made "
                f"versions up to {self.training_version}; a generator from another run or before a resume is still "
                "answering: stop it"
            )
        if not entry.generated:
            self.generated(index, attempt)
        entry.oldest_version = oldest_version
        self._buffered[index] = self._in_flight.pop(index)
        self._unswept.append(index)
        self._counts["judged"] += 1
        self._check()
        return True

    def returned(self, index: int, attempt: int, reason: str) -> bool:
        """Take back a failed lease, to grant it again, or to drop it after `max_attempts` failures."""
        if self._current(index, attempt) is None:
            return False
        self._fail(index, self._in_flight.pop(index), reason)
        self._check()
        return True

    def lost(self, indices: Iterable[int], reason: str) -> list[int]:
        """Take back the leases of `indices` that are being generated; return them. Generated groups are not lost."""
        gone = [index for index in indices if index in self._in_flight and not self._in_flight[index].generated]
        for index in gone:
            self.returned(index, self._in_flight[index].attempt, reason)
        return gone

    def expire(self, now: float) -> list[int]:
        """Take back every lease past its deadline that is not held, and return their indices."""
        late = [index for index, entry in self._in_flight.items() if not entry.held and entry.deadline <= now]
        for index in late:
            self.returned(index, self._in_flight[index].attempt, "expired")
        return late

    def take(self) -> Take | None:
        """Take the next update's groups; return None while some are missing and after the last update.

        First discards groups that exceed the bound, in both orders, even if the update is not ready.
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
        """Record that generators have acknowledged `version`; repeating or skipping a version is harmless.

        Call it after every k-th update, empty ones included: later leases wait for it.
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
        """Return counts since the start of the run; docs/staleness.md defines each, `ledger.py` their sums."""
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
        """Return whether every lease before `below` was granted and none of them is waiting or in flight."""
        return self._next_index >= below and not any(index < below for index in chain(self._waiting, self._in_flight))

    def state_dict(self, *, below: int | None = None) -> dict[str, Any]:
        """Return the state as JSON-able values. Save it only after the taken batch was trained on, or it is lost.

        `below`: save buffered leases from this one on as still in flight; None: save all as they are.
        """
        later = {i: entry for i, entry in self._buffered.items() if below is not None and i >= below}
        kept = {i: entry for i, entry in self._buffered.items() if i not in later}
        tables = {"waiting": self._waiting, "in_flight": self._in_flight | later, "buffered": kept}
        tables |= {"reusable": self._reusable}
        return {
            **{name: getattr(self.config, name) for name in _FIXED_BY_STATE},
            "version": self.version,
            "updates": self.updates,
            "next_index": self._next_index,
            "entries": {name: [[i, *astuple(entry)] for i, entry in rows.items()] for name, rows in tables.items()},
            "gaps": sorted(self._gaps),
            "counts": dict(self._counts),
            "returned": dict(self._returned),
            "dropped": dict(self._dropped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; leases that were in flight are granted again, for the reason `restart`.

        Raises UsageError if a setting of `_FIXED_BY_STATE` differs, or fewer updates are wanted than were done.
        """
        for name in _FIXED_BY_STATE:
            if state[name] != getattr(self.config, name):
                raise UsageError(
                    f"replay.{name} is {getattr(self.config, name)!r}, but the run to resume was saved with "
                    f"{state[name]!r}, which its leases and versions depend on; set it back, or start a new run"
                )
        if self.total_updates is not None and self.total_updates < state["updates"]:
            raise UsageError(f"updates {self.total_updates} is less than the {state['updates']} already done; raise it")
        self.version, self.updates, self._next_index = state["version"], state["updates"], state["next_index"]
        entries = {name: {row[0]: _Entry(*row[1:]) for row in rows} for name, rows in state["entries"].items()}
        self._waiting, self._in_flight = entries["waiting"], entries["in_flight"]
        self._buffered, self._reusable = entries["buffered"], entries["reusable"]
        self._swept_version = None
        self._gaps = set(state["gaps"])
        self._counts = Counter(state["counts"])
        self._returned, self._dropped = by_kind(state["returned"]), by_kind(state["dropped"])
        for index in list(self._in_flight):
            self._wait(index, self._in_flight.pop(index), "restart")
        self._check()

    def _places(self) -> int:
        """Return the number of open places at the published version: the bound above, capped by the run's end."""
        places = (self.version + self.config.max_staleness + 1) * self.config.prompts_per_version
        if self.total_updates is None:
            return places
        return min(places, self.total_updates * self.config.prompts_per_update)

    def _place(self, index: int) -> int:
        """Return the place in the queue of consumption of lease `index` if it were granted now."""
        if self.config.order == "lease":
            return index
        return self.updates * self.config.prompts_per_update + len(self._buffered) + len(self._in_flight)

    def _current(self, index: int, attempt: int, *, ungenerated: bool = False) -> _Entry | None:
        """Return the entry of a lease in flight. If the lease has moved on, count a late report and return None."""
        entry = self._in_flight.get(index)
        if entry is not None and entry.attempt == attempt and not (ungenerated and entry.generated):
            return entry
        self._counts["late"] += 1
        return None

    def _fail(self, index: int, entry: _Entry, reason: str) -> None:
        entry.failures += 1
        if entry.failures < self.config.max_attempts:
            self._wait(index, entry, reason)
            return
        count_reason(self._dropped, reason)
        if self.config.order == "lease":
            self._gaps.add(index)

    def _wait(self, index: int, entry: _Entry, reason: str) -> None:
        count_reason(self._returned, reason)
        self._waiting[index] = _Entry(attempt=entry.attempt + 1, failures=entry.failures)

    def _sweep(self) -> None:
        """Discard groups that exceed the bound; forget the ones that were already trained on. Until a version ends,
        only new groups can exceed it."""
        aged = self._swept_version != self.training_version
        for index in list(self._buffered) if aged else self._unswept:
            entry = self._buffered.get(index)
            if entry is not None and self._over_bound(index, entry):
                self._fail(index, self._buffered.pop(index), "stale")
        self._unswept, self._swept_version = [], self.training_version
        if aged:
            self._reusable = {i: entry for i, entry in self._reusable.items() if not self._over_bound(i, entry)}

    def _over_bound(self, index: int, entry: _Entry) -> bool:
        due = index // self.config.prompts_per_version if self.config.order == "lease" else self.training_version
        return due - entry.oldest_version > self.config.max_staleness

    def _span(self) -> range:
        """Return the next update's leases in lease order."""
        start = self.updates * self.config.prompts_per_update
        return range(start, start + self.config.prompts_per_update)

    def _in_lease_order(self) -> list[int] | None:
        span = self._span()
        complete = all(index in self._buffered or index in self._gaps for index in span)
        return [index for index in span if index in self._buffered] if complete else None

    def _in_ready_order(self) -> list[int] | None:
        """Choose unused groups before reused ones, oldest tokens first, so that reuse only fills gaps."""
        wanted = self.config.prompts_per_update
        if self.held < wanted:
            return None
        held = self._buffered | self._reusable
        return sorted(held, key=lambda index: (held[index].uses, held[index].oldest_version, index))[:wanted]

    def _consume(self, index: int) -> _Entry:
        first_use = index in self._buffered
        entry = self._buffered.pop(index) if first_use else self._reusable.pop(index)
        self._counts["trained" if first_use else "reused"] += 1
        entry.uses += 1
        if entry.uses < self.config.max_reuse:
            self._reusable[index] = entry
        return entry

    def _check(self) -> None:
        """Stop the run if a prompt or a grant went missing."""
        if text := imbalance(self.ledger()):
            raise RunError(f"the ledger does not balance: {text}; this is a bug in Offbeat, please report it")
